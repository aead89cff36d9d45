"""awsomefsd token: the strings that bring machines into one cluster."""

from __future__ import annotations

import click

from awsomefsd.cli import token_generate, token_join
from awsomefsd.cli.main import Group


@click.group(cls=Group)
def token() -> None:
    """Make tokens that bring machines into one cluster."""


for _command in (token_join.create, token_join.list_tokens, token_join.revoke, token_join.rotate, token_generate.generate):
    token.add_command(_command)
