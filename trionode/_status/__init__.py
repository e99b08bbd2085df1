"""The status of running nodes and servers, for their operator on the same machine.

`document` is what it says, `unix_socket` how it is served and read.
"""
