"""A flood of clients that never finish a handshake, or never go.

`crowd` is the flood, with `key_updates` and `overstay`; `program` the node and its honest peers.
"""
