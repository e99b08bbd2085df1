"""Nodes: what `open_node` opens, and everything that runs in a node's nursery.

Begin with `node`, which has the verbs and names the part that does each. `lifecycle` starts and stops the parts, and
`runtime` is what they share. `acceptors` is the inward side; `dialer` the outward, from a name to a connection by
`routes` or `resolvers`; `connector` keeps a connection up; `manager_watch` reports what cert managers do, and `renewal`
decides what becomes of live connections when certificates rotate or end.
"""
