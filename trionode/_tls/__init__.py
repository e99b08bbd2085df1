"""TLS 1.3 on OpenSSL. The only folder that imports pyOpenSSL.

From the top: `handshake` turns a transport into a `stream`, which is TLS as a `trio.abc.Stream`; both drive a
`session`, one TLS connection without I/O. `contexts` is what a cert manager publishes: two sides, made by `engine`,
which builds OpenSSL contexts; `verification` judges certificate chains; `failures` has what can end a session. `probe`
is a handshake that only looks.
"""
