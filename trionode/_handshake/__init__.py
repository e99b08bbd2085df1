"""From a transport stream to a link: contexts, TLS, hello, verdicts, on both sides.

Begin with `accept` or `dial`, which read from top to bottom; `exchange` is what they share. Nothing in this folder
imports a cert manager: contexts come from a receive channel.
"""
