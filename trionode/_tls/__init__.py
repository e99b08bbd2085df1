"""TLS 1.3 on OpenSSL. The only folder that imports pyOpenSSL.

Begin with `stream`, TLS as a `trio.abc.Stream`; `engine` drives OpenSSL, `contexts` is what a cert manager publishes.
"""
