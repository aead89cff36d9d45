"""The points of the charts: rates over the last readings, with gaps where nobody looked."""

from __future__ import annotations

import pytest

from awsomefsd.admin.rates import FUSE, FiguresRead
from awsomefsd.ui import history as module
from awsomefsd.ui.history import CHARTS, POINTS_MAX, SAMPLE_S, SPAN_S, History
from tests.rigs.ui_daemon import UiDaemon


def reading(at_s: float, reads: float, buffered: float = 0, peers: float = 0) -> FiguresRead:
    return FiguresRead(
        at_s,
        {
            (FUSE, (("opcode", "read"),)): reads,
            ("awsomefsd_worker_dirty_bytes", ()): buffered,
            ("awsomefsd_peer_bytes_total", (("peer", "local"), ("way", "client"))): 7 * peers,
            ("awsomefsd_peer_bytes_total", (("peer", "u"), ("way", "client"))): peers,
        },
    )


def values(history: History, chart: str, series: str) -> list[float]:
    told = next(one for one in history.told()["charts"] if one["name"] == chart)
    return list(next(one["values"] for one in told["series"] if one["name"] == series))


def quiet_history() -> History:
    """One whose thread does not run."""
    history = History(UiDaemon().connect)
    history._closed = True
    return history


def test_a_rate_is_that_of_the_last_readings() -> None:
    history = quiet_history()
    for number in range(5):
        history._take(reading(number * SAMPLE_S, reads=number * 50.0, buffered=number, peers=number * 5.0))
    assert values(history, "requests", "reads") == [10.0] * 4 and values(history, "requests", "all") == [10.0] * 4
    assert values(history, "network", "requests") == [1.0] * 4, "without the processes of this node"
    assert values(history, "buffered", "buffered") == [1, 2, 3, 4], "a level, no rate"
    history._take(reading(5 * SAMPLE_S, reads=200.0))
    assert values(history, "requests", "reads")[-1] == round(100 / SPAN_S, 3), "five seconds of silence halve no rate to nothing"


def test_a_pause_or_another_boot_begins_anew() -> None:
    history = quiet_history()
    for at_s in (0.0, 5.0, 1_000.0, 1_005.0, 3.0, 8.0):
        history._take(reading(at_s, reads=at_s))
    assert values(history, "requests", "reads") == [1.0, 1.0, 1.0]


def test_points_have_a_bound_and_every_chart_has_them() -> None:
    history = quiet_history()
    for number in range(POINTS_MAX + 10):
        history._take(reading(number * SAMPLE_S, 0))
    told = history.told()
    assert len(told["at"]) == POINTS_MAX
    assert all(len(series["values"]) == POINTS_MAX for chart in told["charts"] for series in chart["series"])
    assert [chart["name"] for chart in told["charts"]] == list(CHARTS)


def test_the_thread_ends_when_nobody_looks_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_S", 0.001)
    monkeypatch.setattr(module, "WATCHED_S", 0.0)
    history = History(UiDaemon().connect)
    for _ in range(2):
        history.told()
        thread = history._thread
        if thread is not None:  # it has not ended yet
            thread.join(60)
        assert history._thread is None
    history.close()
    history.told()
    assert history._thread is None, "closed"


def test_close_ends_the_thread_while_somebody_looks() -> None:
    history = History(UiDaemon().connect)
    history.told()
    thread = history._thread
    history.close()
    assert thread is not None and not thread.is_alive()
