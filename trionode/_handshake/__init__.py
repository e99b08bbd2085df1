"""From a transport stream to a link: contexts, TLS, hello, verdicts, on both sides.

Begin with `exchange`. Nothing in this folder imports a cert manager: contexts come from a receive channel.
"""
