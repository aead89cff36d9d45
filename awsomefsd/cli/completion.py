"""awsomefsd completion: print the script that completes commands and options in a shell."""

from __future__ import annotations

import click

from awsomefsd.cli.main import COMPLETE_VARIABLE, CliCommand, Invocation, cli

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=CliCommand)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_obj
def completion(_invocation: Invocation, shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    bash: `awsomefsd completion bash > /etc/bash_completion.d/awsomefsd`.  zsh: into a directory of $fpath, as `_awsomefsd`.  fish:
    `awsomefsd completion fish > /etc/fish/completions/awsomefsd.fish`.
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None, "click knows the shells of SHELLS"
    click.echo(made(cli, {}, "awsomefsd", COMPLETE_VARIABLE).source())

