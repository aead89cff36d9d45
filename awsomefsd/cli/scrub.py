"""awsomefsd scrub: start, watch and stop the verification of all stored data."""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.base.log import printable
from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import OK, CliGroup, Invocation
from awsomefsd.cli.output import SIZE, message_dict, output_option, print_json, say

FINDINGS = 3  # as a degraded status: something needs attention


@click.group(cls=CliGroup)
def scrub() -> None:
    """Verify all stored data while mounts are in use, and repair what has a second copy."""


@scrub.command()
@click.option("--rate", type=SIZE, help="Bytes to read a second at most [64M].  On a slow device it reads less.")
@output_option
@click.pass_obj
def start(invocation: Invocation, rate: int | None, form: str) -> None:
    """Start a scrub now.  It runs in the background and continues after a restart of the daemon.

    Without this command each node begins one every 28 days (scrub.every).
    """
    if rate == 0:
        raise click.BadParameter(_no_rate(), param_hint="--rate")
    _ask(invocation, "ScrubStart", form, bytes_per_s=rate or 0)  # 0: as the daemon does without a rate


def _no_rate() -> str:
    from awsomefsd.base.limits import SCRUB_BYTES_PER_S
    from awsomefsd.node.maintenance.scrub import SLOWEST_BYTES_PER_S

    usual = f"{format_bytes(SLOWEST_BYTES_PER_S)} to {format_bytes(SCRUB_BYTES_PER_S)}"
    return f"0 reads nothing; give 1 byte a second or more (a round that begins by itself: {usual}); `awsomefsd scrub stop` ends a scrub"


@scrub.command()
@output_option
@click.pass_obj
def status(invocation: Invocation, form: str) -> int:
    """Show the progress and the findings of the scrub.

    Exit status 3 if a finding is not repaired.
    """
    found = _ask(invocation, "ScrubStatus", form)
    return FINDINGS if found.found > found.repaired else OK


@scrub.command()
@output_option
@click.pass_obj
def stop(invocation: Invocation, form: str) -> None:
    """Stop the scrub.  The next one starts from the beginning, when it is ordered or due."""
    _ask(invocation, "ScrubStop", form, timeout_s=60.0)


def _moment(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns / 1e9))


def _ask(invocation: Invocation, rpc: str, form: str, **fields: Any) -> Any:
    with invocation.client() as client:
        found = client.call(rpc, **fields)
    if form == "json":
        print_json(message_dict(found))
        return found
    began = (_moment(found.started_ns) + (" by itself" if found.by_itself else "")) if found.started_ns else "-"
    say(f"scrub {found.state}; begun {began}; {found.segments} segments, {found.extents} extents, {format_bytes(found.bytes)} read")
    if found.due_ns:
        say(f"the next round begins by itself at {_moment(found.due_ns)}")
    if found.reason:
        say(f"it failed: {found.reason}")
    for finding in found.findings:
        file = f" file {finding.path} of volume {finding.volume} offset {finding.offset}:" if finding.path else ""
        say(printable(f"{finding.where}:{file} {finding.what}{' [repaired]' if finding.repaired else ''}"))
    say(f"{found.found} found, {found.repaired} repaired")
    return found
