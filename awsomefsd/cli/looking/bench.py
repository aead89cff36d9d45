"""awsomefsd bench: how fast this node, its devices, its cluster and a mount are, each with a limit and what to do where it is missed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from awsomefsd.base.errors import ConfigError, Error
from awsomefsd.base.log import printable
from awsomefsd.cli.looking.info import PathOnMount, await_answer
from awsomefsd.cli.main import ERROR, OK, CliCommand, Invocation
from awsomefsd.cli.output import SIZE, Seconds, counted, output_option, print_json, print_table, say
from awsomefsd.cli.waiting import LongWork
from awsomefsd.node.benchmark import host, mount
from awsomefsd.node.benchmark.rows import MIB, MS, Measured, times

GROUPS = ("disk", "device", "network", "metadata", "mount")
SIZE_MIN, SIZE_MAX = MIB, 1 << 40
_ASKS = 100
Skipped = tuple[str, str, str]  # group, of what, why


@click.command(cls=CliCommand)
@click.argument("place", metavar="[DIRECTORY]", required=False, type=PathOnMount())
@click.option("--only", type=click.Choice(GROUPS), multiple=True, help="Measure this alone; may be given several times.")
@click.option("--seconds", type=Seconds(0.1, 600), default=2.0, show_default=True, help="For each row, at most about that long.")
@click.option("--size", type=SIZE, default=64 * MIB, show_default="64MiB", help="Of the file that is written in DIRECTORY.")
@output_option
@click.pass_obj
def bench(invocation: Invocation, place: str | None, only: tuple[str, ...], seconds: float, size: int, form: str) -> int:
    """Measure how fast this node is: disk, devices, network, metadata, and a mount.

    Each row has a limit, and what to look at where it is missed.  DIRECTORY is what the group mount measures, and no other group: it is in
    a mount, or on another filesystem to compare with; a new directory is made there, and removed at the end.  Devices are only read.  Run
    it on a quiet node first, then beside your work.  Exit status 1 if nothing, or not all of --only, could be measured.
    """
    groups = only or (GROUPS if place is not None else GROUPS[:-1])
    if place is not None and "mount" not in groups:
        raise click.UsageError("DIRECTORY is what the group mount measures, and no other group; leave it out, or add --only mount")
    directory = None if place is None else _directory(place)
    if "mount" in groups and directory is None:
        raise click.UsageError("--only mount wants a DIRECTORY to measure in")
    if not SIZE_MIN <= size <= SIZE_MAX:
        raise click.BadParameter("between 1MiB and 1TiB", param_hint="--size")
    with _ended_by_signals(), LongWork("measuring") as progress:
        found, skipped = _measure(invocation, groups, directory, seconds, size, progress)
    _print(found, skipped, form)
    return ERROR if not found or (only and skipped) else OK


def _directory(place: str) -> Path:
    await_answer(place)
    if not os.path.isdir(place):
        raise click.UsageError(f"{place} {'is no directory' if os.path.lexists(place) else 'does not exist'}; name one to measure in")
    return Path(place)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: what was made is removed."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _measure(
    invocation: Invocation, groups: tuple[str, ...], directory: Path | None, seconds: float, size: int, progress: LongWork
) -> tuple[list[Measured], list[Skipped]]:
    found: list[Measured] = []
    skipped: list[Skipped] = []

    def row(group: str, of: str, measure: Callable[[], list[Measured]]) -> None:
        progress.text = f"measuring {group} {of}"
        try:
            found.extend(measure())
        except ConfigError:
            raise
        except Error as err:
            skipped.append((group, of, str(err)))
        except OSError as err:
            skipped.append((group, of, err.strerror or str(err)))

    if "disk" in groups:
        state = invocation.settings.state_dir
        row("disk", str(state), lambda: host.disk(state, seconds))
    if {"device", "network", "metadata"} & {*groups}:
        row("metadata", "the daemon", lambda: _by_daemon(invocation, groups, seconds, row))
    if directory is not None and "mount" in groups:
        told = lambda text: setattr(progress, "text", f"measuring {text} in {directory}")  # noqa: E731
        row("mount", str(directory), lambda: mount.measure(str(directory), size, seconds, told))
    return found, skipped


def _by_daemon(invocation: Invocation, groups: tuple[str, ...], seconds: float, row: Callable[..., None]) -> list[Measured]:
    """Measures what the daemon has to name: devices and peers; returns the row of its own answers.  Raises Error."""
    with invocation.client() as client:
        if "device" in groups:
            for one in client.call("ListDevices").devices:
                if one.path and one.state == "ok":
                    row("device", one.path, lambda one=one: host.device(one.path, one.bytes, seconds))
        own = client.call("GetStatus").node
        if "network" in groups:
            for node in client.call("ListNodes").nodes:
                if node.node != own and node.control and node.readiness == "ready":
                    row("network", node.name, lambda node=node: host.network([(node.name, node.control)]))
        if "metadata" not in groups:
            return []
        return [times("metadata.ask", "the daemon", lambda _: client.call("ListNodes"), _ASKS, seconds)]


def _print(found: list[Measured], skipped: list[Skipped], form: str) -> None:
    if form == "json":
        rows = [
            {"name": one.name, "of": one.of, "unit": one.row.unit, "median": round(one.median, 3), "worst": round(one.worst, 3),
             "samples": one.samples, "limit": one.row.limit, "within": one.within, "what": one.row.what,
             "advice": "" if one.within else one.row.advice}
            for one in found
        ]  # fmt: skip
        print_json(
            {"unix_s": int(time.time()), "rows": rows, "skipped": [dict(zip(("group", "of", "why"), one, strict=True)) for one in skipped]}
        )
        return
    table: list[list[object]] = [
        [one.name, _figure(one.median), _figure(one.worst), one.row.unit, f"{'<' if one.row.unit == MS else '>'} {one.row.limit:g}",
         "" if one.within else "beyond", one.of]
        for one in found
    ]  # fmt: skip
    heads = ["ROW", "MEDIAN", "WORST", "UNIT", "LIMIT", "", "OF"]
    print_table(heads, table, right=("MEDIAN", "WORST", "LIMIT"), empty="nothing could be measured")
    beyond: dict[str, str] = {one.name: f"{one.row.what}: {one.row.advice}" for one in found if not one.within}
    if beyond or skipped:
        say()
    for name, words in beyond.items():
        say(f"{name}: {words}")
    for group, of, why in skipped:
        say(printable(f"not measured: {group} of {of}: {why}"))
    if not beyond and found:
        say(f"{counted(len(found), 'row')} within limits")


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
