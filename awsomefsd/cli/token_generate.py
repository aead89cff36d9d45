"""awsomefsd token generate: a founding token, made before there is any cluster."""

from __future__ import annotations

import click

from awsomefsd.cli.main import Command


@click.command(cls=Command)
@click.option("--expect", type=int, required=True, metavar="N", help="The cluster forms when N machines with this token are there.")
@click.option("--uses", type=int, default=0, metavar="M", help="How many machines may use it in all, fewer than twice N [2 N - 1].")
@click.option("--endpoint", "endpoints", multiple=True, metavar="HOST:PORT", help="Where one of them listens (cluster.listen); repeatable.")
@click.option("--ttl", default="24h", show_default=True, help="How long it is good: a number with s, m, h or d.")
def generate(expect: int, uses: int, endpoints: tuple[str, ...], ttl: str) -> None:
    """Make a founding token, offline: N machines that share it become one cluster.

    Set it on each as AWSOMEFSD_TOKEN (or AWSOMEFSD_TOKEN_FILE, or the configuration key token) and start `awsomefsd run`, in any order.
    They find each other by multicast, or at the endpoints.  Whoever has the token can join: keep it as secret as a password.
    """
    import time

    from awsomefsd.cluster import token_founding
    from awsomefsd.cluster.addresses import split_endpoint
    from awsomefsd.config import parse_seconds

    for endpoint in endpoints:
        split_endpoint(endpoint)
    try:
        life_ms = parse_seconds(ttl) * 1_000
    except ValueError as err:
        raise click.UsageError(f"--ttl: {err}") from err
    made = token_founding.make(expect, endpoints, time.time_ns() // 1_000_000 + life_ms, uses)
    click.echo(token_founding.print_token(made))
