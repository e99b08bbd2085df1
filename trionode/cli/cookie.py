"""`trionode cookie`: a fresh secret that all nodes of a cluster share."""

from __future__ import annotations

import click

from trionode._handshake.cookie import generate_cookie

from .descriptors import needs_stdout
from .exits import ExitStatus
from .given import json_option
from .shown import put_json


@click.command(short_help="Print a fresh cookie, for --cookie-file.")
@json_option
@needs_stdout
def cookie(*, as_json: bool) -> int:
    """Print a fresh cookie: a secret of 43 characters that all nodes of a cluster share, on top of certificates.

    \b
    Examples:
      (umask 077; trionode cookie > cookie)
      trionode serve beta@localhost --cookie-file cookie
    """
    made = generate_cookie()
    if as_json:
        put_json({"cookie": made})
    else:
        click.echo(made)
    return ExitStatus.OK
