"""Every command that prints something fits a terminal of 80 columns, and says what people can read."""

from __future__ import annotations

import json

import pytest

from awsomefsd.cli.main import COMMANDS
from buildtools.nodes import Node
from tests.observe.terminal import shown, too_wide

pytestmark = pytest.mark.root

PRINTING = (
    "status", "status --verbose", "status --codes", "device ls", "device show 1", "device scan", "device identify 1",
    "device collect status", "volume ls", "volume show demo", "mount", "node ls", "ca ls", "token ls", "quarantine ls", "gc", "config show",
    "config check", "upgrade status", "scrub status", "self-check", "version", "doctor", "log follow --no-wait",
    "events --no-wait", "--help", "volume set --help",
)  # fmt: skip
PRINT_LITTLE = (  # commands that run for ever, or that say one sentence or an error
    "init", "run", "keeper", "supervise", "join", "leave", "mount-pyfuse3", "umount", "flush", "fsck", "meta", "kubernetes", "probe",
    "completion", "info", "summary", "stats", "top", "profile", "bench", "mount-helper", "check-copy", "umount-helper",
    "ui",
)  # fmt: skip


def test_no_command_is_left_out() -> None:
    assert {words.split()[0] for words in PRINTING} - {"--help"} | set(PRINT_LITTLE) == set(COMMANDS)


@pytest.fixture(scope="module")
def evil(node: Node) -> Node:
    """A node with everything that has long names."""
    node.cli("token", "create", "--role", "node", "--endpoint", "127.0.0.1:7440")
    node.cli("volume", "create", "v" * 60, "--quota", "7G")
    return node


@pytest.mark.parametrize("words", PRINTING)
def test_fits_eighty_columns(evil: Node, words: str) -> None:
    told = shown(evil, *words.split())
    assert told.strip() and "Traceback" not in told
    assert not too_wide(told), told


def test_what_is_wider_than_the_terminal_is_printed_as_blocks(node: Node) -> None:
    told = shown(node, "node", "ls")
    assert node.uuid() in told.split(), "in one piece, to be copied"
    assert "NAME" in told.split("\n")[0] and node.uuid() not in told.split("\n")[0]
    wide = shown(node, "node", "ls", columns=300)
    assert len(wide.strip().split("\n")) == 3, "a head, a line, and one node"


def test_sizes_and_quotas_as_people_read_them(node: Node) -> None:
    node.cli("volume", "create", "sizes", "--quota", "5G")
    assert "5.0 GiB" in node.cli("volume", "show", "sizes")
    node.cli("volume", "set", "sizes", "--quota", "none", "--quota-files", "none")
    found = json.loads(node.cli("volume", "show", "sizes", "-o", "json"))
    assert (found["quota_bytes"], found["quota_inodes"]) == (0, 0), "programs get numbers"
    lines = dict(line.split(maxsplit=1) for line in node.cli("volume", "show", "sizes").splitlines() if len(line.split()) > 1)
    assert lines["quota_bytes"] == lines["quota_inodes"] == "none"
    node.cli("volume", "delete", "sizes")
