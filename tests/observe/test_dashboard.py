"""Dashboard and rules in a real Prometheus that scrapes a real node: each query is answered, and not with nothing."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from buildtools.nodes import Node, await_true
from buildtools.say import CHECKOUT
from tests.rigs.free_ports import free_ports
from tests.rigs.metrics_page import MISSING, figures

PROMETHEUS = shutil.which("prometheus")
pytestmark = [pytest.mark.root, pytest.mark.skipif(PROMETHEUS is None, reason=MISSING)]
DASHBOARD = CHECKOUT / "packaging" / "helm" / "awsomefs" / "dashboards" / "awsomefs.json"
RULES = CHECKOUT / "docs" / "examples" / "prometheus" / "rules.yaml"
NOT_OF_ONE_NODE = {"Members behind, in entries"}  # it has no other member
WAIT_S = 60


@contextmanager
def page_of(node: Node) -> Iterator[int]:
    """The page of a node's unix socket at a TCP port, which is the only kind that Prometheus scrapes."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = figures(node).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def prometheus(directory: Path, target: int) -> Iterator[Callable[..., Any]]:
    """A server that scrapes a port each second; yields what asks its API."""
    (port,) = free_ports(1)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "awsomefs", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    words = [
        f"--config.file={directory}/prometheus.yaml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]

    def ask(page: str, **parameters: str) -> Any:
        address = f"http://127.0.0.1:{port}/api/v1/{page}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=WAIT_S) as reply:
                return json.load(reply)["data"]
        except OSError:
            return None

    with (directory / "log").open("wb") as log:
        child = subprocess.Popen([str(PROMETHEUS), *words], stdout=log, stderr=log, start_new_session=True)
    try:
        yield ask
    finally:
        child.kill()
        child.wait()


def test_every_panel_and_every_rule_is_answered(node: Node, tmp_path: Path) -> None:
    node.cli("volume", "create", "counted", "--quota", "5G")
    panels = json.loads(DASHBOARD.read_text())["panels"]
    with page_of(node) as target, prometheus(tmp_path, target) as ask:

        def shows(panel: Any) -> bool:
            (node.mountpoint / "shown").write_bytes(b"x")
            (node.mountpoint / "shown").unlink()
            replies = [ask("query", query=row["expr"]) for row in panel["targets"]]
            return all(reply and reply["result"] for reply in replies)

        for panel in panels:
            if panel["title"] not in NOT_OF_ONE_NODE:
                await_true(panel["title"], lambda panel=panel: shows(panel), WAIT_S, 0.2)
        labels = {words for panel in panels for row in panel["targets"] for words in _labels(row, ask)}
        assert labels == set(), "a legend names a label that the figures do not have"
        rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
        assert len(rules) > 10 and {rule["health"] for rule in rules} == {"ok"}, rules
        assert {rule["name"] for rule in rules if rule["state"] == "firing"} == set(), "of a sound node"


def _labels(row: dict[str, str], ask: Callable[..., Any]) -> list[str]:
    """Labels of a legend that the answer does not have."""
    label = row["legendFormat"].strip("{}")
    return [f"{label} of {row['expr']}" for series in ask("query", query=row["expr"])["result"] if label not in series["metric"]]
