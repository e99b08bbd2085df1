"""`trionode completion`: scripts by which shells complete commands, options and the names of nodes."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .descriptors import needs_stdout
from .exits import ExitStatus, Trouble


@click.command(short_help="Completion for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
@needs_stdout
def completion(context: click.Context, shell: str) -> int:
    """Print a script that completes commands, options and node names in a shell.

    \b
    Put one of these into the shell's start-up file:
      eval "$(trionode completion bash)"        ~/.bashrc
      eval "$(trionode completion zsh)"         ~/.zshrc
      trionode completion fish | source         ~/.config/fish/config.fish
    """
    root = context.find_root()
    kind = get_completion_class(shell)
    program = root.info_name or "trionode"
    if kind is None:
        msg = f"the installed click has no completion for {shell}; upgrade it"
        raise Trouble(msg, ExitStatus.USAGE)
    click.echo(kind(root.command, {}, program, f"_{program.upper()}_COMPLETE").source())
    return ExitStatus.OK
