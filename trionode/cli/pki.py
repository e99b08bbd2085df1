"""`trionode pki`: a CA, and certificates for nodes, in one directory. This is the group; its commands stand beside.

The directory holds the CA, as `trionode.pki.PKIDirectory` has it, and `NAME.pem` and `NAME-key.pem` of each node. No
file is replaced without `--force`. Files are replaced atomically, the key first, as `trionode.pki` does it, so that
nodes that follow them rotate.
"""

from __future__ import annotations

import click

from .pki_ca import init, roll
from .pki_issue import issue, token
from .pki_revoke import revoke, unrevoke
from .pki_serve import pki_serve
from .pki_show import show


@click.group(
    short_help="A CA, and certificates for nodes, in a directory.",
    commands=(init, issue, show, revoke, unrevoke, token, pki_serve, roll),
    invoke_without_command=True,
)
@click.pass_context
def pki(context: click.Context) -> None:
    """A CA, and certificates for nodes, in a directory.

    The CA's key lies in a file there: keep it private, and off the machines that the nodes run on.

    \b
    Examples:
      trionode pki init                             a CA, in ./pki
      trionode pki issue alpha@localhost            a certificate and its key
      trionode pki issue --force alpha@localhost    a new one: rotate
      trionode pki show alpha@localhost             show a certificate
      trionode pki revoke alpha@localhost           put it on pki/ca.crl
      trionode pki unrevoke alpha@localhost         take it off again
      trionode pki token beta@localhost             a token for `trionode join`
      trionode pki roll begin                       replace the CA, step by step
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
