"""The names of nodes in `awsomefsd top`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.rates import FiguresRead, Rates
from awsomefsd.base.errors import Unavailable
from awsomefsd.cli import main as command_line
from awsomefsd.cli.looking import stats
from awsomefsd.cli.main import Invocation

ONE, TWO = "11111111-1111", "22222222-2222"


class FakeDaemon:
    """Answers with `status` and `nodes`; `asked` has the RPCs."""

    def __init__(self, leader: str = ONE) -> None:
        self.status = pb.Status(node=ONE, metadata=pb.Metadata(leader=leader))
        self.nodes: pb.ListNodesReply | None = pb.ListNodesReply(nodes=[pb.Node(node=ONE, name="first"), pb.Node(node=TWO, name="second")])
        self.asked: list[str] = []

    def __enter__(self) -> FakeDaemon:
        return self

    def __exit__(self, *_exc: object) -> None: ...

    def call(self, rpc: str, **fields: Any) -> Any:
        self.asked.append(rpc)
        if rpc == "GetStatus":
            return self.status
        assert (rpc, fields) == ("ListNodes", {"removed": True})
        if self.nodes is None:
            raise Unavailable("no leader")
        return self.nodes


def _interval(*peers: str) -> Rates:
    """An interval of one second in which the first peer sent most."""
    sent = {("awsomefsd_peer_bytes_total", (("peer", peer), ("way", "client"))): 4096.0 - at for at, peer in enumerate(peers)}
    return Rates(FiguresRead(0, {}), FiguresRead(1, sent))


@pytest.fixture
def intervals(monkeypatch: pytest.MonkeyPatch) -> list[Rates]:
    """The intervals that the command gets."""
    made: list[Rates] = []

    def rates(*_words: object) -> Iterator[Rates]:
        yield from made

    monkeypatch.setattr(stats, "rates", rates)
    return made


def test_nodes_have_names(intervals: list[Rates], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = FakeDaemon()
    monkeypatch.setattr(Invocation, "client", lambda _self: daemon)
    intervals += [_interval(TWO, "local"), _interval(ONE, TWO)]
    assert command_line.run(["top"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[-1] for line in shown.splitlines() if "4.0 KiB/s" in line] == ["second", "local", "first", "second"]
    assert ONE not in shown and TWO not in shown
    assert daemon.asked == ["GetStatus", "ListNodes"], "names are asked for when a node has none yet"
    del intervals[1:]
    assert command_line.run(["top", "-o", "json"]) == 0
    assert [(row["node"], row["name"]) for row in json.loads(capsys.readouterr().out)["nodes"]] == [(TWO, "second"), ("local", "local")]


@pytest.mark.parametrize("leader", ["", ONE])
def test_without_names_the_ids_stand(
    leader: str, intervals: list[Rates], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = FakeDaemon(leader)
    daemon.nodes = None
    monkeypatch.setattr(Invocation, "client", lambda _self: daemon)
    intervals.append(_interval(TWO))
    assert command_line.run(["top"]) == 0
    assert TWO in capsys.readouterr().out and ("ListNodes" in daemon.asked) == bool(leader)


def _counted(*buckets: tuple[str, float], sum_s: float) -> dict[Any, float]:
    name, kind = "awsomefsd_worker_fuse_request_seconds", ("opcode", "read")
    counts = {(f"{name}_bucket", (("le", bound), kind)): count for bound, count in buckets}
    return {**counts, (f"{name}_count", (kind,)): buckets[-1][1], (f"{name}_sum", (kind,)): sum_s}


def test_times_of_an_interval_are_those_of_its_requests() -> None:
    before = FiguresRead(0, _counted(("0.001", 50), ("0.01", 50), ("+Inf", 50), sum_s=1.0))
    one = Rates(before, FiguresRead(1, _counted(("0.001", 100), ("0.01", 150), ("+Inf", 150), sum_s=1.5)))
    assert one.latency_s() == one.latency_s(opcode="read") == 0.005
    assert one.latency_quantile_s(0.75, opcode="read") == pytest.approx(0.0055), "half of the way between two bounds"
    assert one.latency_quantile_s(0.5) == 0.001 and one.latency_quantile_s(0.25) == 0.0005
    assert one.latency_s(opcode="write") is None and one.latency_quantile_s(0.99, opcode="write") is None
    assert Rates(before, before).latency_s() is None and Rates(before, before).latency_quantile_s(0.99) is None


def test_what_took_longer_than_all_bounds_counts_as_the_last_one() -> None:
    one = Rates(FiguresRead(0, {}), FiguresRead(1, _counted(("10", 1), ("+Inf", 9), sum_s=500.0)))
    assert one.latency_quantile_s(0.99) == 10


def test_operations_without_times_have_a_dash(
    intervals: list[Rates], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a worker that is older than the daemon, and of kinds that are not timed."""
    monkeypatch.setattr(Invocation, "client", lambda _self: FakeDaemon())
    values = {**_counted(("0.001", 4), ("+Inf", 4), sum_s=0.002)}
    values |= {(stats.FUSE, (("opcode", kind),)): count for kind, count in (("read", 4.0), ("setlk", 2.0))}
    intervals.append(Rates(FiguresRead(0, {}), FiguresRead(1, values)))
    assert command_line.run(["top"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["4.0", "0.50", "0.99", "read"] in lines and ["2.0", "-", "-", "setlk"] in lines
