"""A flood of clients that never finish a handshake: `crowd` is the flood, `program` the node and its honest peers."""
