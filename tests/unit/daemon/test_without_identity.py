"""A daemon without an identity: one for each state directory."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from awsomefsd.base import identity, sockets
from awsomefsd.base.errors import Refused
from awsomefsd.config.settings import MetricsSettings, Settings
from awsomefsd.daemon import without_identity


def test_a_second_daemon_does_not_wait_beside_the_first(tmp_path: Path) -> None:
    """Two vote twice in one name when a cluster is founded, and the second takes the admin socket of the first."""
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    settings.state_dir.mkdir()
    with identity.WaitingLock(settings.state_dir):
        with pytest.raises(Refused, match=f"is in use by process {os.getpid()}; a second daemon.*stop the daemon first"):
            without_identity.wait(settings)
        assert not settings.run_dir.exists()
        identity.init(settings.state_dir)
        assert without_identity.wait(settings), "`init` and `join` end the wait"
    assert without_identity.wait(settings) and identity.kept_by_purge(settings.state_dir) == []


def test_a_daemon_whose_machine_becomes_a_node_before_it_has_the_lock_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")

    class Late(identity.WaitingLock):
        def __init__(self, state_dir: Path, what: str) -> None:
            super().__init__(state_dir, what)
            identity.init(state_dir)

    monkeypatch.setattr(identity, "WaitingLock", Late)
    assert without_identity.wait(settings) and not settings.run_dir.exists()


def connected(place: Path) -> socket.socket:
    """The socket is there a moment before somebody listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return sockets.connect_unix(place)
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_daemon_that_waits_lives_and_is_not_ready(tmp_path: Path) -> None:
    """kubelet's probes ask it before it is in a cluster: it is neither killed nor counted as updated."""
    page = MetricsSettings(listen="unix")
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run", metrics=page)
    answers: dict[str, str] = {}

    def ask() -> None:
        try:
            for path in ("/healthz", "/readyz"):
                with connected(settings.run_dir / "metrics.sock") as sock:
                    sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                    answers[path] = sock.makefile("rb").read().decode()
        finally:
            identity.init(settings.state_dir)  # ends the wait

    asking = threading.Thread(target=ask)
    asking.start()
    assert without_identity.wait(settings)
    asking.join()
    assert answers["/healthz"].startswith("HTTP/1.0 200") and answers["/healthz"].endswith("ok\n")
    assert answers["/readyz"].startswith("HTTP/1.0 503") and "this node is in no cluster" in answers["/readyz"]
    assert not (settings.run_dir / "metrics.sock").exists(), "the address is the daemon's that goes on"
