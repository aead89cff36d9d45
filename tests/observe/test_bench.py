"""awsomefsd bench on a real node with a mount."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from awsomefsd.node.benchmark.mount import PREFIX
from awsomefsd.node.benchmark.rows import ROWS
from buildtools.nodes import Node, await_true
from tests.observe.terminal import shown, too_wide

pytestmark = pytest.mark.root
QUICK = ("--seconds", "0.1", "--size", "2MiB")


def left(node: Node) -> list[str]:
    return [name for name in os.listdir(node.mountpoint) if name.startswith(PREFIX)]


def test_every_row_is_measured_and_nothing_stays(node: Node) -> None:
    told = node.ask("bench", str(node.mountpoint), *QUICK)
    assert not told["skipped"] and not left(node)
    assert {row["name"] for row in told["rows"]} == set(ROWS) - {"network.connect"}, "this node is alone"
    for row in told["rows"]:
        assert row["median"] > 0 and row["worst"] > 0 and row["samples"] > 0 and row["limit"] == ROWS[row["name"]].limit
        assert bool(row["advice"]) != row["within"]
    assert {row["of"] for row in told["rows"] if row["name"].startswith("device.")} == {str(node.disk)}


def test_fits_the_terminal_and_says_what_to_do(node: Node) -> None:
    text = shown(node, "bench", "--only", "disk", "--only", "device", *QUICK)
    assert "disk.sync" in text and "device.stream" in text and "mount.create" not in text
    assert "within limits" in text or "identify" in text or "state_dir" in text
    assert not too_wide(text), text


def test_bad_words(node: Node, tmp_path: Path) -> None:
    assert "wants a DIRECTORY" in node.cli_error("bench", "--only", "mount")
    assert "does not exist" in node.cli_error("bench", str(tmp_path / "none"))
    assert "between 1MiB and 1TiB" in node.cli_error("bench", str(node.mountpoint), "--size", "5")
    assert "give a smaller --size" in _failed(node, "--only", "mount", "--size", "512GiB")
    assert not left(node)


def _failed(node: Node, *words: str) -> str:
    done = subprocess.run(
        [*node.command, "bench", str(node.mountpoint), *words], env=node.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done
    return done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_that_is_ended_removes_what_it_made(node: Node, number: int) -> None:
    words = [*node.command, "bench", str(node.mountpoint), "--only", "mount", "--seconds", "60"]
    child = subprocess.Popen(words, env=node.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        await_true("its directory", lambda: left(node), 60)
        time.sleep(0.2)
        child.send_signal(number)
        assert "interrupted" in child.communicate(timeout=60)[1]
    finally:
        child.kill()
        child.wait()
    assert not left(node) and child.returncode == 130


def test_without_a_daemon_the_rest_is_measured(node: Node, tmp_path: Path) -> None:
    env = node.environment() | {"AWSOMEFSD_RUN_DIR": str(tmp_path / "run")}
    words = [*node.command, "bench", str(tmp_path), *QUICK, "-o", "json", "--run-dir", str(tmp_path / "run")]
    told = json.loads(subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout)
    assert [one["group"] for one in told["skipped"]] == ["metadata"] and "no daemon answers" in told["skipped"][0]["why"]
    assert {"disk.sync", "mount.sync"} <= {row["name"] for row in told["rows"]}
