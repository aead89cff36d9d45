"""awsomefsd stats and awsomefsd top: what this node does now."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from awsomefsd.admin.rates import FUSE, WORKER, Rates, rates
from awsomefsd.base.errors import Error
from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import Seconds, output_option, print_table, say

if TYPE_CHECKING:
    from awsomefsd.admin.client import AdminClient

INTERVAL_S = 5.0  # workers report their figures so often
HEAD_EVERY = 20
_CLEAR = "\x1b[H\x1b[2J"

Column = Callable[[Rates], float]
STATS: dict[str, Column] = {
    "ops_per_second": lambda one: sum(one.operations().values()),
    "reads_per_second": lambda one: one.per_second(FUSE, opcode="read"),
    "writes_per_second": lambda one: one.per_second(FUSE, opcode="write"),
    "fsyncs_per_second": lambda one: one.per_second(FUSE, opcode="fsync"),
    "operation_ms": lambda one: (one.latency_s() or 0.0) * 1_000,
    "requests_per_second": lambda one: one.per_second("awsomefsd_leader_requests_total"),
    "entries_per_second": lambda one: one.per_second("awsomefsd_meta_entries_total"),
    "sync_ms": lambda one: one.mean("awsomefsd_meta_journal_sync_seconds_total", "awsomefsd_meta_journal_syncs_total") * 1_000,
    "dirty_bytes": lambda one: one.now.total(f"{WORKER}dirty_bytes"),
    "free_segments": lambda one: one.now.total("awsomefsd_device_segments_free"),
    "daemon_bytes": lambda one: one.now.total("awsomefsd_daemon_memory_bytes"),
}
_WIDTHS = {
    "OPS/s": 6, "READ/s": 6, "WRITE/s": 7, "FSYNC/s": 7, "OP ms": 6,
    "REQ/s": 6, "LOG/s": 6, "SYNC ms": 7, "DIRTY": 6, "FREE": 6, "DAEMON": 7,
}  # fmt: skip
_LOCAL = "local"  # the workers and the daemon of this node, as peers

_interval = click.option("--interval", type=Seconds(0.1, 3_600), default=INTERVAL_S, show_default=True, help="Seconds of a line.")
_count = click.option("--count", type=click.IntRange(1), help="Exit after so many intervals [never].")


@click.command(cls=CliCommand)
@_interval
@_count
@output_option
@click.pass_obj
def stats(invocation: Invocation, interval: float, count: int | None, form: str) -> None:
    """Print what this node does, one line an interval.

    Requests of the kernel to all mounts (OPS, READ, WRITE, FSYNC) and the mean time that one took (OP), requests that the metadata service
    took while it led (REQ), entries of the log (LOG), the mean time of a journal sync (SYNC), buffered bytes (DIRTY), free segments
    (FREE), and memory of the daemon.
    Workers report every 5 s: a shorter interval shows 0 and then what came at once.
    """
    with invocation.client() as client:
        for number, one in enumerate(rates(client, interval, count or 0)):
            values = {name: column(one) for name, column in STATS.items()}
            if form == "json":
                click.echo(json.dumps(values))
                continue
            if number % HEAD_EVERY == 0:
                say(" ".join(f"{head:>{width}}" for head, width in _WIDTHS.items()))
            shown = zip(values.items(), _WIDTHS.values(), strict=True)
            say(" ".join(f"{_shown(name, value):>{width}}" for (name, value), width in shown))


def _shown(name: str, value: float) -> str:
    """Returns a figure in as many characters as its column has."""
    if name.endswith("_bytes"):
        return format_bytes(int(value)).replace(" ", "").replace("iB", "")
    return _ms(value) if name.endswith("_ms") else f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


@click.command(cls=CliCommand)
@_interval
@_count
@output_option
@click.pass_obj
def top(invocation: Invocation, interval: float, count: int | None, form: str) -> None:
    """Show the busiest mounts of this node, operations, and nodes that ask it for metadata.

    Mounts and operations: requests of the kernel a second; of the usual kinds the mean time and the one that 99 of 100 keep to (an estimate
    from the histograms of the metrics page).  Nodes: bytes that this node's metadata service exchanged with them.
    """
    names: dict[str, str] = {_LOCAL: _LOCAL}
    with invocation.client() as client:
        for one in rates(client, interval, count or 0):
            nodes = _nodes(one)
            if any(row["node"] not in names for row in nodes):
                names |= _names(client)
            for row in nodes:
                row["name"] = names.get(row["node"]) or row["node"]
            told = {"mounts": _mounts(one), "operations": _operations(one), "nodes": nodes}
            if form == "json":
                click.echo(json.dumps(told))
            else:
                _show(told)


def _mounts(one: Rates) -> list[dict[str, Any]]:
    rows = []
    for directory in one.now.label_values("awsomefsd_mount_up", "dir"):
        by_kind = one.operations(dir=directory)
        rows.append(
            {
                "directory": directory,
                "ops_per_second": sum(by_kind.values()),
                "reads_per_second": by_kind.get("read", 0.0),
                "writes_per_second": by_kind.get("write", 0.0),
                "dirty_bytes": int(one.now.total(f"{WORKER}dirty_bytes", dir=directory)),
                "open_files": int(one.now.total(f"{WORKER}open_files", dir=directory)),
            }
        )
    return sorted(rows, key=lambda row: -row["ops_per_second"])


def _operations(one: Rates) -> list[dict[str, Any]]:
    found = []
    for kind, rate in one.operations().items():
        if rate:
            mean, most = one.latency_s(opcode=kind), one.latency_quantile_s(0.99, opcode=kind)
            times = {"mean_ms": mean and mean * 1_000, "p99_ms": most and most * 1_000}
            found.append({"operation": kind, "per_second": rate, **times})
    return sorted(found, key=lambda row: -float(str(row["per_second"])))


def _nodes(one: Rates) -> list[dict[str, Any]]:
    name = "awsomefsd_peer_bytes_total"
    rows = []
    for peer in one.now.label_values(name, "peer"):
        by_way = {way: one.per_second(name, peer=peer, way=way) for way in ("client", "voter")}
        if any(by_way.values()):
            rows.append({"node": peer, "requests_bytes_per_second": int(by_way["client"]), "log_bytes_per_second": int(by_way["voter"])})
    return sorted(rows, key=lambda row: -(row["requests_bytes_per_second"] + row["log_bytes_per_second"]))


def _names(client: AdminClient) -> dict[str, str]:
    """Returns the names of all nodes, removed ones too, by their UUIDs; none while nobody can say them."""
    with suppress(Error):  # a client of the cluster may not list them, or the leader has just gone
        metadata = client.call("GetStatus").metadata
        if metadata.leader and not metadata.trouble:
            return {row.node: row.name for row in client.call("ListNodes", removed=True).nodes}
    return {}


def _show(told: dict[str, list[dict[str, Any]]]) -> None:
    if sys.stdout.isatty():
        click.echo(_CLEAR, nl=False)
    rows: list[list[object]] = [
        [f"{row['ops_per_second']:.1f}", f"{row['reads_per_second']:.1f}", f"{row['writes_per_second']:.1f}",
         format_bytes(row["dirty_bytes"]), row["open_files"], row["directory"]]
        for row in told["mounts"]
    ]  # fmt: skip
    heads = ["OPS/s", "READ/s", "WRITE/s", "DIRTY", "OPEN", "MOUNT"]
    print_table(heads, rows, right=heads[:-1], empty="no mounts")
    say()
    rows = [[f"{row['per_second']:.1f}", _ms(row["mean_ms"]), _ms(row["p99_ms"]), row["operation"]] for row in told["operations"]]
    heads = ["PER SECOND", "MEAN ms", "P99 ms", "OPERATION"]
    print_table(heads, rows, right=heads[:-1], empty="no operations")
    say()
    rows = [
        [f"{format_bytes(row['requests_bytes_per_second'])}/s", f"{format_bytes(row['log_bytes_per_second'])}/s", row["name"]]
        for row in told["nodes"]
    ]
    print_table(["REQUESTS", "LOG", "NODE"], rows, right=("REQUESTS", "LOG"), empty="no node asks this one")
