"""`awsomefsd ui` on a real node: every page and its JSON, the sign-in, TLS, a daemon that is away, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest

from awsomefsd.node.health.codes import CODES
from awsomefsd.ui.frame import NAVIGATION
from buildtools.nodes import Node, await_true
from tests.rigs.ui_page import WAIT_S, CommandPage, Page, serving

pytestmark = pytest.mark.root
WORDS = {
    "/": "Leader of the metadata", "/health": "All health codes", "/nodes": "Nodes of the cluster", "/devices": "Devices of the cluster",
    "/volumes": "Volumes of the cluster", "/mounts": "Mounts of this node", "/charts": 'data-chart="requests"',
    "/conflicts": "no conflicts", "/events": "was created",
}  # fmt: skip


@pytest.fixture(scope="module")
def page(node: Node) -> Iterator[CommandPage]:
    with serving(node, "127.0.0.1:0") as made:
        assert made.ask("/")[0].status == 303
        assert made.enter().status == 303
        yield made


def test_every_page_has_what_it_is_for(page: CommandPage, node: Node) -> None:
    assert set(WORDS) == {place for place, _ in NAVIGATION}
    for place, words in WORDS.items():
        answer, text = page.ask(place)
        assert answer.status == 200 and words in text, (place, text)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"] and answer.headers["Cache-Control"] == "no-store"
        assert text.count("<script") == 1 and " style=" not in text, "nothing that the policy refuses"
        assert "://" not in text, "nothing from elsewhere"
    assert str(node.mountpoint) in page.ask("/mounts")[1] and str(node.disk) in page.ask("/devices")[1]
    assert node.volume in page.ask("/volumes")[1] and all(code in page.ask("/health")[1] for code in CODES)
    assert node.uuid() in page.ask("/nodes")[1]


def test_the_json_is_that_of_the_commands(page: CommandPage, node: Node) -> None:
    told = json.loads(page.ask("/api/status")[1])
    same = node.ask("status", accept=(0, 3))
    for name in ("cluster", "node", "devices", "mounts", "version"):
        assert told[name] == same[name] or name == "devices", name
    assert [row["name"] for row in json.loads(page.ask("/api/nodes")[1])] == [row["name"] for row in node.ask("node", "ls")]
    events = [json.loads(line) for line in node.cli("events", "--no-wait", "-o", "json").splitlines()]
    assert [one["index"] for one in json.loads(page.ask("/api/events")[1])] == [one["index"] for one in reversed(events)]


def test_charts_have_points_of_what_the_mount_does(page: CommandPage, node: Node) -> None:
    def charted() -> bool:
        (node.mountpoint / "charted").write_bytes(b"x")
        told = json.loads(page.ask("/api/charts")[1])
        requests = next(one for one in told["charts"] if one["name"] == "requests")["series"]
        return bool(told["at"]) and max(requests[0]["values"], default=0) > 0

    await_true("requests in the charts", charted, 120, 0.2)


def test_a_code_is_for_one_use_and_the_next_one_is_printed(page: CommandPage) -> None:
    held = page.cookie
    assert page.enter().status == 403, "used"
    page.cookie = held
    assert "127.0.0.1 has signed in" in page.said()
    page.link = page.said()
    assert page.enter().status == 303


def test_a_daemon_that_is_stopped_or_gone_is_said(page: CommandPage, node: Node) -> None:
    daemon = node.pid("daemon")
    os.kill(daemon, signal.SIGSTOP)
    try:
        await_true("the page to say so", lambda: page.ask("/volumes")[0].status == 503, 120)
        assert "The daemon does not answer" in page.ask("/")[1]
    finally:
        os.kill(daemon, signal.SIGCONT)
    await_true("the daemon on the page", lambda: page.ask("/")[0].status == 200, 120)


def test_an_address_that_others_reach_has_tls_with_the_certificate_of_the_node(node: Node) -> None:
    with serving(node, "0.0.0.0:0") as page:
        assert page.tls and page.enter().status == 303
        assert page.cookie.startswith("__Host-")
        answer, text = page.ask("/")
        assert answer.status == 200 and node.uuid() in text
        with socket.create_connection((page.host, page.port), WAIT_S) as plain:
            plain.sendall(b"GET /sign-in HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with suppress(ConnectionResetError):  # it has not read all that we sent
                assert not plain.recv(100).startswith(b"HTTP/1.1 200")


def test_a_daemon_serves_the_page_where_the_setting_says_so(node: Node) -> None:
    first, last = node.cli("ui", "--login").splitlines()
    operator = Page(node.cli("ui", "--login", "--operator").splitlines()[0], node)
    assert operator.enter().status == 303 and 'value="cordon"' in operator.ask("/nodes")[1]
    assert "within 15 minutes" in last
    page = Page(first, node)
    assert page.tls and f"0.0.0.0:{page.port}" == node.settings["AWSOMEFSD_UI_LISTEN"]
    assert page.ask("/")[0].status == 303 and page.enter().status == 303
    for place, words in WORDS.items():
        answer, text = page.ask(place)
        assert answer.status == 200 and words in text, (place, text)
    assert node.uuid() == json.loads(page.ask("/api/status", host="page.example:1")[1])["node"], "a name of the setting"
    assert page.ask("/api/status", host="elsewhere.example")[0].status == 421
    assert page.enter().status == 403, "a code is for one use"


def test_an_operator_does_what_the_buttons_say(node: Node) -> None:
    with serving(node, "127.0.0.1:0", "--operator") as page:
        assert page.enter().status == 303

        def done(name: str, target: str = "") -> str:
            answer, text = page.ask("/action", "POST", urlencode({"action": name, "target": target, "sure": "yes"}))
            assert answer.status == 200 and "<h1>Done</h1>" in text, (name, text)
            return text

        assert 'value="cordon"' in page.ask("/nodes")[1]
        done("cordon", node.uuid())
        assert node.ask("node", "ls")[0]["state"] == "cordoned" and 'value="uncordon"' in page.ask("/nodes")[1]
        done("uncordon", node.uuid())
        assert node.ask("node", "ls")[0]["state"] == "active"
        (node.mountpoint / "flushed").write_bytes(b"x")
        assert f"{node.mountpoint} is durable" in done("flush", str(node.mountpoint))
        done("scan")
        done("collect")
        answer, text = page.ask("/action", "POST", urlencode({"action": "drain-device", "target": "4711", "sure": "yes"}))
        assert answer.status == 409 and "Not done" in text and "4711" in text


def test_who_reads_a_page_cannot_change_anything(page: CommandPage, node: Node) -> None:
    answer, text = page.ask("/action", "POST", urlencode({"action": "cordon", "target": node.uuid(), "sure": "yes"}))
    assert answer.status == 403 and "--operator" in text
    assert node.ask("node", "ls")[0]["state"] == "active" and "/action" not in page.ask("/nodes")[1]


def test_it_ends_at_a_signal_and_leaves_nothing(node: Node) -> None:
    with serving(node, "127.0.0.1:0") as page:
        page.process.send_signal(signal.SIGINT)
        _, said = page.process.communicate(timeout=WAIT_S)
        assert page.process.returncode == 0 and "Traceback" not in said, said


def test_what_cannot_be_is_refused_in_words(page: CommandPage, node: Node, tmp_path: Path) -> None:
    said = node.cli_error("ui", "--listen", f"127.0.0.1:{page.port}")
    assert f"--listen = '127.0.0.1:{page.port}': Address already in use; port {page.port} is used by" in said
    assert f"pid {page.process.pid}" in said
    for wrong in ("nonsense", "localhost:1", "127.0.0.1", "127.0.0.1:99999", "::1:7480", "[127.0.0.1]:1", ""):
        assert "write an IP address and a port" in node.cli_error("ui", "--listen", wrong), wrong
    assert "Cannot assign requested address" in node.cli_error("ui", "--listen", "192.0.2.1:7480")
    elsewhere = Node(tmp_path / "nothing")
    assert "no daemon answers at" in elsewhere.cli_error("ui")
