"""TLS streams without nodes: the same managers serve any protocol on Trio.

`client` dials and wraps what is connected already, `server` listens, accepts and wraps what was accepted already.
"""
