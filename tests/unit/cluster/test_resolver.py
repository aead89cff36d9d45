"""Host names of other nodes are looked up beside the thread that asks, again and again, and voters are found by them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from awsomefsd.base.limits import NAME_LOOK_MS
from awsomefsd.cluster import endpoints
from awsomefsd.cluster.membership.known_voters import _Known
from awsomefsd.cluster.resolver import Resolver
from awsomefsd.config.settings import Settings


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not so():
        assert time.monotonic() < end, "it never became so"
        time.sleep(0.002)


def test_a_name_is_looked_up_without_waiting_and_followed() -> None:
    may, now = threading.Event(), [100.0]
    answers: dict[str, str] = {"a.example": "10.0.0.1"}

    def look(host: str) -> list[str]:
        assert may.wait(60)
        if host not in answers:
            raise OSError("no such name")
        return answers[host].split()

    names = Resolver(look, lambda: now[0])
    assert names.address("10.9.9.9") == "10.9.9.9" and names.address("::1") == "::1"
    assert names.address("a.example") == "" and names.address("b.example") == ""  # the name server does not answer, and nobody waits
    may.set()
    until(lambda: names.address("a.example") == "10.0.0.1")
    answers.update({"a.example": "10.0.0.2", "b.example": "10.0.0.3"})
    now[0] += NAME_LOOK_MS / 1_000
    until(lambda: (names.address("a.example"), names.address("b.example")) == ("10.0.0.2", "10.0.0.3"))
    del answers["a.example"]
    now[0] += NAME_LOOK_MS / 1_000
    names.address("a.example")
    until(lambda: names._thread is not None and not names._thread.is_alive())
    assert names.address("a.example") == "10.0.0.2"
    answers["a.example"] = "10.0.0.4 fd00::4"
    seen = set()

    def both() -> bool:
        now[0] += NAME_LOOK_MS / 1_000
        seen.add(names.address("a.example"))
        return seen >= {"10.0.0.4", "fd00::4"}

    until(both)


def test_voters_have_names(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, run_dir=tmp_path / "run")
    nodes = [
        endpoints.Endpoint("u1", "one", "localhost:7440", "localhost:7441", True),
        endpoints.Endpoint("u2", "two", "10.0.0.2:7440", "10.0.0.2:7441", True),
        endpoints.Endpoint("u3", "three", "10.0.0.3:7440", "10.0.0.3:7441", False),
    ]
    endpoints.write(tmp_path, "c", nodes)
    known = _Known(settings, "u2")
    until(lambda: known()["u1"][0] in ("127.0.0.1", "::1"))
    assert known() == {"u1": (known()["u1"][0], 7441), "u2": ("10.0.0.2", 7441)}
