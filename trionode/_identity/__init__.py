"""Identity: node names and patterns over them, what a certificate says, and the peer of a connection."""
