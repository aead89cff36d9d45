"""awsomefsd token: make, list, rotate and revoke the tokens that machines join with.

`generate` works without a cluster: it makes the founding token of a new one.  The others ask the daemon of this node.
"""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.output import message_dict, output_option, print_json, print_table

ttl_option = click.option("--ttl", default="24h", show_default=True, help="How long the token is valid: a number with s, m, h or d.")
endpoint_option = click.option(
    "--endpoint", "endpoints", multiple=True, metavar="HOST:PORT", help="Address of a node to join at; repeatable [those the nodes report]."
)


def seconds(ttl: str, option: str = "--ttl") -> int:
    """Returns the seconds of a length of time such as 24h; anything else is a usage error that names the option."""
    from awsomefsd.config.settings import parse_seconds

    try:
        return parse_seconds(ttl)
    except ValueError as err:
        raise click.UsageError(f"{option}: {err}") from err


@click.group(cls=CliGroup)
def token() -> None:
    """Make, list, rotate and revoke the tokens that machines join with.

    `generate` makes the founding token of a new cluster.  `create` makes a token for machines that join an existing one.
    """


@token.command()
@click.option(
    "--role",
    type=click.Choice(["node", "client"]),
    default="client",
    show_default=True,
    help="A client only mounts volumes: it carries no metadata and may not change the cluster.  A node may do everything.",
)
@ttl_option
@click.option(
    "--uses", type=click.IntRange(0, 1 << 31), default=1, show_default=True, help="How many machines may join with it; 0: no limit."
)
@endpoint_option
@output_option
@click.pass_obj
def create(invocation: Invocation, role: str, ttl: str, uses: int, endpoints: tuple[str, ...], form: str) -> None:
    """Make a token for machines that join this cluster, and print it.

    Use it with `awsomefsd join` on each machine.  It is printed this once.  Whoever has it can join while it is valid: keep it as secret
    as a password.
    """
    with invocation.client() as client:
        made = client.call("CreateToken", role=role, ttl_s=seconds(ttl), uses=uses or -1, endpoints=endpoints)
    _print(made, form)


@token.command(name="list")
@output_option
@click.pass_obj
def list_tokens(invocation: Invocation, form: str) -> None:
    """List the tokens of the cluster; the secret text of a token is never shown."""
    with invocation.client() as client:
        found = client.call("ListTokens").tokens
    if form == "json":
        print_json([_dict(row) for row in found])
        return
    rows = [
        [row.id, row.kind, row.role, row.uses_left if row.uses_left >= 0 else "any", _when(row.expires_ms), _state(row)] for row in found
    ]
    print_table(["ID", "KIND", "ROLE", "USES LEFT", "EXPIRES", "STATE"], rows, empty="no tokens")


@token.command()
@click.argument("identity", metavar="ID")
@click.pass_obj
def revoke(invocation: Invocation, identity: str) -> None:
    """Revoke the token with this ID.

    No machine can join with it any more.  Machines that joined with it stay members.
    """
    with invocation.client() as client:
        client.call("RevokeToken", id=identity)
    click.echo(f"token {identity} is revoked")


@token.command()
@click.argument("identity", metavar="ID")
@ttl_option
@endpoint_option
@output_option
@click.pass_obj
def rotate(invocation: Invocation, identity: str, ttl: str, endpoints: tuple[str, ...], form: str) -> None:
    """Replace the token with this ID.

    Makes and prints a new token with the same role and the uses that were left, and revokes the old one.
    """
    with invocation.client() as client:
        made = client.call("RotateToken", id=identity, ttl_s=seconds(ttl), endpoints=endpoints)
    _print(made, form)


@token.command()
@click.option(
    "--expect", type=int, required=True, metavar="N", help="The cluster forms when N machines with this token have found each other."
)
@click.option("--uses", type=int, default=0, metavar="M", help="How many machines may use it in all, fewer than 2 N [2 N - 1].")
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="HOST:PORT",
    help="Address where one of the machines listens (setting cluster.listen); repeatable.",
)
@ttl_option
def generate(expect: int, uses: int, endpoints: tuple[str, ...], ttl: str) -> None:
    """Make a founding token: N machines that share it form one cluster.

    This needs no running daemon.  Set the token on each machine as AWSOMEFSD_TOKEN (or AWSOMEFSD_TOKEN_FILE, or the setting token), and
    start `awsomefsd run` on all of them in any order.  They find each other by multicast or at the endpoints.  Whoever has the token can
    join: keep it as secret as a password.
    """
    from awsomefsd.cluster.addresses import split_endpoint
    from awsomefsd.cluster.pki import founding_token

    for endpoint in endpoints:
        split_endpoint(endpoint)
    made = founding_token.make(expect, endpoints, time.time_ns() // NS_PER_MS + seconds(ttl) * 1_000, uses)
    click.echo(founding_token.print_token(made))


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
