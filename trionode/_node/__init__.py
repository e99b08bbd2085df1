"""Nodes: what `open_node` opens, and everything that runs in a node's nursery.

Begin with `node`. `runtime` is what the parts of a node share; `dialer` goes from a name to a connection, by `routes`
or `resolvers`; `connector` keeps a connection up; `renewal` decides what becomes of live connections when
certificates rotate or end.
"""
