"""Metrics as Prometheus reads them, over TCP and over a unix socket."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from awsomefsd.base import sockets
from awsomefsd.base.errors import ConfigError, Unavailable
from awsomefsd.base.metrics import Registry, Sample
from awsomefsd.node.health import exporter
from awsomefsd.node.health.probes import LATE_S, LoopBeat, Probes
from buildtools.nodes import await_true

WELL = Probes(LoopBeat(), str)


@pytest.fixture
def figures() -> Registry:
    registry = Registry()
    registry.counter("awsomefsd_requests_total", "Requests.", op="read").add(3)
    registry.counter("awsomefsd_requests_total", "Requests.", op="write").add(4)
    registry.gauge("awsomefsd_mounts", "Mounts.").set(2)
    waits = registry.histogram("awsomefsd_sync_seconds", "Syncs.")
    waits.observe(0.0007)
    waits.observe(0.0010)
    waits.observe(99)
    registry.source(lambda: [Sample("awsomefsd_device_bytes", "gauge", "Size.", 5, (("device", 'a"b'),))])
    return registry


def test_render(figures: Registry) -> None:
    text = exporter.render(figures).decode()
    for line in (
        'awsomefsd_requests_total{op="read"} 3.0',
        'awsomefsd_requests_total{op="write"} 4.0',
        "awsomefsd_mounts 2.0",
        'awsomefsd_sync_seconds_bucket{le="0.0005"} 0.0',
        'awsomefsd_sync_seconds_bucket{le="0.001"} 2.0',
        'awsomefsd_sync_seconds_bucket{le="+Inf"} 3.0',
        "awsomefsd_sync_seconds_count 3.0",
        'awsomefsd_device_bytes{device="a\\"b"} 5.0',
        "# TYPE awsomefsd_requests_total counter",
        "# TYPE awsomefsd_sync_seconds histogram",
    ):
        assert line + "\n" in text, line
    assert text.count("# TYPE awsomefsd_requests_total") == 1


def test_a_source_that_fails_loses_its_own_figures_only(figures: Registry) -> None:
    def away() -> list[Sample]:
        raise Unavailable("restarting")

    figures.source(away)
    text = exporter.render(figures).decode()
    assert "awsomefsd_scrape_errors_total 1.0" in text and "awsomefsd_mounts 2.0" in text and "awsomefsd_device_bytes" in text


def test_served_over_tcp(figures: Registry, tmp_path: Path) -> None:
    page = exporter.Exporter(figures, "127.0.0.1:0", tmp_path, WELL)
    try:
        with urllib.request.urlopen(f"http://{page.address}/metrics", timeout=60) as answer:
            assert b"awsomefsd_mounts 2.0" in answer.read()
        with pytest.raises(ConfigError, match=r"metrics\.listen"):
            exporter.Exporter(figures, page.address, tmp_path, WELL)
    finally:
        page.close()


def test_served_over_a_unix_socket_with_a_long_path(figures: Registry, tmp_path: Path) -> None:
    run_dir = tmp_path / ("d" * 120)
    run_dir.mkdir()
    page = exporter.Exporter(figures, "unix", run_dir, WELL)
    try:
        with sockets.connect_unix(run_dir / "metrics.sock") as sock:
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = sock.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.0 200") and b"awsomefsd_mounts 2.0" in answer
    finally:
        page.close()
    assert not (run_dir / "metrics.sock").exists()


def test_strangers_neither_use_up_threads_nor_keep_others_out(figures: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred connections that never end their request, and one that does."""
    page = exporter.Exporter(figures, "127.0.0.1:0", tmp_path, WELL)
    host, _, port = page.address.rpartition(":")
    before, strangers = threading.active_count(), []
    try:
        for number in range(300):
            strangers.append(socket.create_connection((host, int(port)), 60))
            with suppress(OSError):
                strangers[-1].sendall(b"GET /metrics HTTP/1.0\r\n")
            assert len(page._server._ends) <= 2 * exporter.PAGES_MAX
            # A thread gives its place back just before it ends.
            await_true("the ends of threads", lambda: threading.active_count() - before <= 2 * exporter.PAGES_MAX, 60, 0.001)
            if number % 50 == 49:
                with urllib.request.urlopen(f"http://{page.address}/metrics", timeout=60) as answer:
                    assert b"awsomefsd_mounts 2.0" in answer.read()
    finally:
        for stranger in strangers:
            stranger.close()
        page.close()


def test_a_connection_does_not_last_however_slowly_it_asks(figures: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "PAGE_S", 0.2)
    page = exporter.Exporter(figures, "127.0.0.1:0", tmp_path, WELL)
    host, _, port = page.address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 60) as slow:
            slow.settimeout(0.05)
            while True:  # a byte now and then, so that no single read is late
                try:
                    slow.sendall(b"G")
                    if not slow.recv(1):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
    finally:
        page.close()


def asked(page: exporter.Exporter, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{page.address}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as err:
        return err.code, err.read().decode()


def test_probes_tell_a_process_that_lives_from_a_node_that_can_work(figures: Registry, tmp_path: Path) -> None:
    now, trouble = [0.0], ["this node knows no leader of the metadata"]

    def not_ready() -> str:
        if trouble[0] == "away":
            raise Unavailable("the keeper does not answer")
        return trouble[0]

    page = exporter.Exporter(figures, "127.0.0.1:0", tmp_path, Probes(LoopBeat(lambda: now[0]), not_ready))
    try:
        assert asked(page, "/healthz") == (200, "ok\n"), "without a leader it lives all the same"
        assert asked(page, "/readyz") == (503, "this node knows no leader of the metadata\n")
        trouble[0] = "away"
        assert asked(page, "/readyz") == (503, "the keeper does not answer\n")
        trouble[0] = ""
        assert asked(page, "/readyz") == (200, "ok\n")
        now[0] = LATE_S + 1
        assert asked(page, "/healthz") == (503, "the event loop has stood still for 61 s\n")
        assert asked(page, "/nothing")[0] == 404
    finally:
        page.close()
