"""awsomefsd token create|list|revoke|rotate: tokens for machines that join a cluster which is there."""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.cli.main import Command, Session
from awsomefsd.cli.output import message_dict, output_option, print_json, print_table

ttl_option = click.option("--ttl", default="24h", show_default=True, help="How long it is good: a number with s, m, h or d.")
endpoint_option = click.option(
    "--endpoint", "endpoints", multiple=True, metavar="HOST:PORT", help="Where a node can be joined; repeatable [what the nodes say]."
)


def seconds(ttl: str) -> int:
    """Of an option; a usage error for what is no length of time."""
    from awsomefsd.config import parse_seconds

    try:
        return parse_seconds(ttl)
    except ValueError as err:
        raise click.UsageError(f"--ttl: {err}") from err


@click.command(cls=Command)
@click.option("--role", type=click.Choice(["node", "client"]), default="node", show_default=True, help="client: mounts only.")
@ttl_option
@click.option("--uses", type=click.IntRange(1, 1 << 31), default=None, help="How many machines may join with it [no bound].")
@endpoint_option
@output_option
@click.pass_obj
def create(session: Session, role: str, ttl: str, uses: int | None, endpoints: tuple[str, ...], form: str) -> None:
    """Make a token and print it, this once: one machine or several become nodes with it (`awsomefsd join`).

    Whoever has it can join while it is good: keep it as secret as a password.
    """
    with session.client() as client:
        made = client.call("CreateToken", role=role, ttl_s=seconds(ttl), uses=uses or -1, endpoints=endpoints)
    _print(made, form)


@click.command(name="list", cls=Command)
@output_option
@click.pass_obj
def list_tokens(session: Session, form: str) -> None:
    """List tokens: what they are for, never what they are."""
    with session.client() as client:
        found = client.call("ListTokens").tokens
    if form == "json":
        print_json([_dict(row) for row in found])
        return
    rows = [
        [row.id, row.kind, row.role, row.uses_left if row.uses_left >= 0 else "any", _when(row.expires_ms), _state(row)] for row in found
    ]
    print_table(["ID", "KIND", "ROLE", "USES LEFT", "EXPIRES", "STATE"], rows, empty="no tokens")


@click.command(cls=Command)
@click.argument("identity", metavar="ID")
@click.pass_obj
def revoke(session: Session, identity: str) -> None:
    """Nobody joins with the token any more; who has joined stays."""
    with session.client() as client:
        client.call("RevokeToken", id=identity)
    click.echo(f"token {identity} is revoked")


@click.command(cls=Command)
@click.argument("identity", metavar="ID")
@ttl_option
@endpoint_option
@output_option
@click.pass_obj
def rotate(session: Session, identity: str, ttl: str, endpoints: tuple[str, ...], form: str) -> None:
    """Make a token like the one with the id, print it, and revoke the old one."""
    with session.client() as client:
        made = client.call("RotateToken", id=identity, ttl_s=seconds(ttl), endpoints=endpoints)
    _print(made, form)


def _print(made: Any, form: str) -> None:
    if form == "json":
        print_json(message_dict(made))
    else:
        click.echo(made.text)


def _dict(row: Any) -> dict[str, Any]:
    shown = message_dict(row)
    del shown["text"]
    return {**shown, "state": _state(row)}


def _state(row: Any) -> str:
    if row.revoked:
        return "revoked"
    if row.expires_ms <= time.time() * 1_000:
        return "expired"
    return "used up" if row.uses_left == 0 else "good"


def _when(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1_000))
