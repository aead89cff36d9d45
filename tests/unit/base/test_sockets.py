"""Unix sockets: who the peer is, and the words for systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from awsomefsd.base import sockets
from awsomefsd.cluster.resolver import look_up
from awsomefsd.meta.client import connection


def test_peer_is_us(tmp_path: Path) -> None:
    listener = sockets.listen_unix(tmp_path / "s", 0o660, os.getgid())
    with listener, sockets.connect_unix(tmp_path / "s"):
        other, _ = listener.accept()
        with other:
            peer = sockets.peer_of(other)
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid()) and os.getgid() in peer.gids
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660


def test_threads_that_bind_at_once_leave_the_umask_as_it_was() -> None:
    before = os.umask(0o022)
    first_inside, second_waits = threading.Event(), threading.Event()

    def second() -> None:
        first_inside.wait()
        second_waits.set()
        with sockets.owner_only():
            pass

    thread = threading.Thread(target=second)
    thread.start()
    try:
        with sockets.owner_only():
            first_inside.set()
            second_waits.wait()
            thread.join(0.05)  # without exclusion it is through by then
            assert thread.is_alive(), "two are inside at once"
        thread.join()
        assert os.umask(0o022) == 0o022
    finally:
        thread.join()
        os.umask(before)


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        sockets.notify_systemd("READY=1")
        assert manager.recv(64) == b"READY=1"


def test_peer_in_many_groups(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("setgroups needs root")
    groups = list(range(20_000, 20_700))
    code = f"import os, sys; from pathlib import Path; os.setgroups({groups})\n"
    code += "from awsomefsd.base import sockets; s = sockets.connect_unix(Path(sys.argv[1])); s.recv(1)"
    listener = sockets.listen_unix(tmp_path / "s", 0o600)
    with listener, subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s")]) as client:
        listener.settimeout(60)
        other, _ = listener.accept()
        with other:
            assert set(groups) <= sockets.peer_of(other).gids
        assert client.wait(60) == 0


@pytest.mark.parametrize("name", ["node..example", "a" * 64 + ".example"])
def test_a_name_that_no_host_can_have_is_an_error_of_the_system(name: str) -> None:
    with pytest.raises(OSError, match="not the name of a host"):
        sockets.connect_tcp(name, 7440, 1)
    with pytest.raises(OSError, match="not the name of a host"):
        look_up(name)
    with pytest.raises(OSError, match="not the name of a host"):
        connection.connect(f"11111111-0000-0000-0000-000000000000@{name}:7441")
