"""Hostile bytes for everything that reads from the network.

`mutation` makes bytes that are almost right, `campaign` tries them and keeps those that reach something new, `program`
is the command line. What is tried is a target: `decoders` (no I/O), `dispatch` (a connection without TLS: a `case`),
`live` (nodes, inside real TLS: a `life`).
"""
