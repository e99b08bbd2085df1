"""Hostile bytes for every decoder of the network's: `python -m benchmarks.stress.fuzz`, from a checkout.

`mutation` makes bytes that are almost right, `campaign` tries them and keeps those that reach something new; what is
tried is a target: `decoders` (no I/O), `dispatch` (a connection, without TLS), `live` (nodes, inside real TLS).
"""
