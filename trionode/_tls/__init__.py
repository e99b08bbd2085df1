"""TLS 1.3 on OpenSSL. The only folder that imports pyOpenSSL.

From the top: `handshake` turns a transport into a `stream`, which is TLS as a `trio.abc.Stream`; both drive a
`session`, one TLS connection without I/O. `contexts` is what a cert manager publishes: two sides, made by `engine`,
which builds OpenSSL contexts; `failures` has what can end a session. `probe` is a handshake that only looks.

Whether a peer's chain is believed: `judge`, whom everything asks, over `paths` (which there may be), `anchors` (what of
a path never changes) and the revocation lists of `_credentials`. `verification` asks it in handshakes and puts its
verdicts into words, by the table of `verify_codes`; `binding` is how OpenSSL is asked.
"""
