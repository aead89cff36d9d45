"""What the daemon knows of this node's segment server: when one is to run, what it said, and from when on it is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.served import samples_of_server, served_message, server_messages
from awsomefsd.base.errors import Unavailable
from awsomefsd.io.pool.server_state import (
    ATTACHING,
    OK,
    STATE_SOCKET,
    CopyState,
    DeviceState,
    ServerState,
    StateSocket,
    WorkState,
    ask_state,
)
from awsomefsd.node.devices.served_devices import GONE_AFTER_S, ServedDevices
from tests.rigs.full_queue import full_queue

SERVED = DeviceState(
    1, "u1", "/dev/a", OK, 3, 8, 2, [CopyState(5, 77, 1_000, 4_000)],
    {"write": WorkState(4, 2_000_000_000, 4_096, 1, 500), "flush": WorkState(2)},
)  # fmt: skip
STATE = ServerState(7, "1.2", [SERVED, DeviceState(2, "u2", "", ATTACHING), DeviceState(3, "u3", "", "it is another's")], "h:7442")


class Server:
    """Says `state`, or nothing."""

    def __init__(self) -> None:
        self.state: ServerState | None = None
        self.asked = 0

    def ask(self, run_dir: Path) -> ServerState:
        self.asked += 1
        if self.state is None:
            raise Unavailable("nothing answers")
        return self.state


def test_a_server_is_asked_only_where_one_is_to_run_and_gone_only_after_a_while(tmp_path: Path) -> None:
    server, now_s = Server(), [100.0]
    served = ServedDevices(tmp_path, tmp_path, server.ask, lambda: int(now_s[0] * 1e9))
    served.poll()
    assert served.report() is None and not server.asked and not served.due()
    served.mark(True)
    assert served.due() and served.report() is None, "it was not asked yet"
    for silent_s in (0, GONE_AFTER_S - 1, GONE_AFTER_S):
        now_s[0] = 100.0 + silent_s
        served.poll()
        report = served.report()
        assert report is not None and report.silent_s == silent_s
        assert bool(report.gone) == (silent_s == GONE_AFTER_S), "it may be starting"
    assert "nothing answers" in report.gone and served.of("u1") is None and served.unserved("u1") == ""
    server.state = STATE
    served.poll()
    report = served.report()
    assert report is not None and report.gone == "" and report.silent_s == 0
    server.state = None
    now_s[0] += 1
    served.poll()
    assert (report := served.report()) is not None and report.silent_s == 0, "the time before its answer does not count"
    served.mark(False)
    assert served.due(), "what it said has to be forgotten"
    served.poll()
    assert served.report() is None and not served.due()


def test_what_it_says_of_devices_and_of_its_port(tmp_path: Path) -> None:
    server = Server()
    served = ServedDevices(tmp_path, tmp_path, server.ask)
    served.mark(True)
    server.state = STATE
    served.poll()
    assert served.of("u1") == SERVED and served.of("u9") is None
    assert [served.unserved(uuid) for uuid in ("u1", "u2", "u3", "u9")] == ["", "", "it is another's", ""]
    server.state = ServerState(7, "1.2", [], "", "no leader; no port", {}, "no port")
    served.poll()
    report = served.report()
    assert report is not None and report.gone == "no port", "that it cannot ask the leader keeps no node from it"


def test_it_is_asked_over_its_socket(tmp_path: Path) -> None:
    served = ServedDevices(tmp_path, tmp_path)
    served.mark(True)
    served.poll()
    assert (report := served.report()) is not None and report.state is None and "does not answer" in report.why
    socket = StateSocket(tmp_path, lambda: STATE)
    try:
        served.poll()
        assert (report := served.report()) is not None and report.state == STATE
    finally:
        socket.close()


def test_metrics_count_each_bay_once_and_each_kind_of_work(tmp_path: Path) -> None:
    server = Server()
    served = ServedDevices(tmp_path, tmp_path, server.ask)
    served.mark(True)
    server.state = STATE
    served.poll()
    status = pb.Status(segment_servers=list(server_messages(served.report())))
    status.devices.add(device=1, path="/dev/a", segments=8, segments_free=1, served=[served_message(SERVED)])
    status.devices.add(device=2, path="/dev/b", segments=8, segments_free=1)
    found = {(one.name.removeprefix("awsomefsd_"), dict(one.labels).get("state") or dict(one.labels).get("kind")): one.value
             for one in samples_of_server(status)}  # fmt: skip
    assert found == {
        ("segment_server_up", None): 1,
        ("pool_device_bays", "free"): 1, ("pool_device_bays", "open"): 2,
        ("pool_device_bays", "copying"): 1, ("pool_device_bays", "held"): 4,
        ("pool_device_operations_total", "write"): 4, ("pool_device_operations_total", "flush"): 2,
        ("pool_device_operation_seconds_total", "write"): 2, ("pool_device_operation_seconds_total", "flush"): 0,
        ("pool_device_errors_total", "write"): 1, ("pool_device_errors_total", "flush"): 0,
        ("pool_device_usual_seconds", "write"): 0.0005, ("pool_device_usual_seconds", "flush"): 0,
        ("pool_device_io_bytes_total", "write"): 4_096,
    }  # fmt: skip


def test_a_node_without_devices_of_pools_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a removal of what is not there: on a filesystem that is read only the kernel refuses that first."""
    served = ServedDevices(tmp_path, tmp_path)
    monkeypatch.setattr(Path, "unlink", lambda *_args, **_words: pytest.fail("nothing is to be removed"))
    served.mark(False)
    assert not ServedDevices(tmp_path / ("x" * 300), tmp_path).wanted(), "nobody can say"


def test_a_segment_server_that_is_stopped_holds_up_nobody(tmp_path: Path) -> None:
    """Also when so many have asked it in vain that the kernel takes no more connections for it."""
    with full_queue(tmp_path / STATE_SOCKET), pytest.raises(Unavailable):
        ask_state(tmp_path)
