"""The process that works at a store ends when it is told to, and removes first what a check has put there."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable

import pytest

from awsomefsd.cli.objects.store_work import store_work
from awsomefsd.tier import store_work as work


def test_a_second_signal_does_not_end_the_removal_of_what_was_put(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon signals when its caller is gone, and once more when it gives the work up."""
    done: list[str] = []

    def run(_raw: bytes, _tell: Callable[[dict[str, object]], object]) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            done.append("went on")
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("removed")

    monkeypatch.setattr(work, "run", run)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert store_work.callback is not None
        with pytest.raises(SystemExit):
            store_work.callback()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done == ["removed"]
