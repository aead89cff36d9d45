"""info, summary, stats and top on a real node, beside what the mount itself and the kernel say."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from awsomefsd.base.errors import Unavailable
from awsomefsd.cli.looking import info, summary
from awsomefsd.cli.looking.info import openers, place_of
from awsomefsd.keeper import mount_syscalls
from buildtools.nodes import Node, await_true
from buildtools.say import BuildError
from tests.observe.terminal import shown, too_wide

pytestmark = pytest.mark.root

HUNG_S = 60.0


@pytest.fixture(scope="module")
def tree(node: Node) -> Path:
    """A directory with 3 directories, 602 files of which one is large, one further name, and a symbolic link."""
    top = node.mountpoint / "tree"
    (top / "a" / "b").mkdir(parents=True)
    for number in range(600):
        (top / "a" / f"f{number}").write_bytes(b"x" * 10)
    (top / "large").write_bytes(os.urandom(3 << 20))
    (top / "a" / "b" / "one").write_bytes(b"linked")
    os.link(top / "a" / "b" / "one", top / "two")
    (top / "symbolic").symlink_to("large")
    node.cli("flush", str(node.mountpoint))
    return top


def test_summary_counts_what_is_there(node: Node, tree: Path) -> None:
    told = node.ask("summary", str(tree))
    assert (told["directories"], told["files"], told["symlinks"], told["further_names"]) == (3, 602, 1, 1)
    assert told["bytes"] == 600 * 10 + (3 << 20) + 6
    text = shown(node, "summary", str(tree))
    assert "3.0 MiB" in text and not too_wide(text)


def test_info_says_where_data_lies_and_who_has_it_open(node: Node, tree: Path) -> None:
    large = tree / "large"
    with large.open("rb"):
        told = node.ask("info", str(large))
    assert told["inode"] == large.stat().st_ino and told["size"] == 3 << 20 and told["volume"] == node.volume
    assert {"pid": os.getpid(), "program": Path("/proc/self/comm").read_text().strip()} in told["open_by"]
    assert sum(one["bytes"] for one in told["places"]) == 3 << 20
    assert [one["path"] for one in told["places"]] == [str(node.disk)] or told["places"][0]["path"]
    assert sum(one["length"] for one in told["first_extents"]) == 3 << 20
    assert node.ask("info", str(large))["open_by"] == []
    assert node.ask("info", str(tree / "a" / "f0"))["inline_data"]
    text = shown(node, "info", str(large))
    assert "1 name" in text and not too_wide(text)
    assert node.ask("info", str(tree / "symbolic"))["inode"] == (tree / "symbolic").lstat().st_ino
    assert "is on no mount of this node" in node.cli_error("info", "/proc/self/comm")


def test_info_of_a_hole_and_of_a_directory(node: Node, tree: Path) -> None:
    hole = tree.parent / "hole"
    hole.touch()
    os.truncate(hole, 1 << 40)
    node.cli("flush", str(node.mountpoint))
    assert "none: no byte of it is stored" in shown(node, "info", str(hole))
    links = f"{tree.stat().st_nlink} link"
    said = shown(node, "info", str(tree))
    assert links in said and "name" not in said, "a directory has no further names"
    hole.unlink()


@contextmanager
def silent_mount(place: Path) -> Iterator[None]:
    """A FUSE filesystem whose server never answers, not even the first request of the kernel."""
    place.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        subprocess.run(
            ["mount", "-i", "-t", "fuse", "-o", f"fd={fd},rootmode=40000,user_id=0,group_id=0", "silent", place], pass_fds=[fd], check=True
        )
        try:
            yield
        finally:
            mount_syscalls.umount(str(place), mount_syscalls.MNT_DETACH)
    finally:
        os.close(fd)  # ends all that waits


def test_info_asks_no_other_mount_which_may_be_hung(node: Node, tree: Path, tmp_path: Path) -> None:
    """Neither one that the daemon lists, nor one of which somebody has a descriptor."""
    silent, large = tmp_path / "silent", tree / "large"

    class Client:
        def call(self, _rpc: str) -> SimpleNamespace:
            directories = (str(silent), str(node.mountpoint))
            return SimpleNamespace(mounts=[SimpleNamespace(directory=one, volume=Path(one).name) for one in directories])

    told: list[object] = []

    def look() -> None:
        volume, found = place_of(Client(), str(large))
        told.append(volume)
        told.append([one["pid"] for one in openers(found)])

    with silent_mount(silent), large.open("rb"):
        held = os.open(silent, os.O_PATH)
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(HUNG_S)
        seen = list(told)
        os.close(held)
    looking.join()
    assert seen[:1] == [node.mountpoint.name], "hung"
    assert len(seen) == 2 and os.getpid() in seen[1], "hung"


@pytest.mark.parametrize("command", [info.info, summary.summary])
def test_a_path_that_does_not_answer_is_an_error(command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for Ctrl-C, which no call to a hung mount hears."""
    monkeypatch.setattr(info, "ANSWER_S", 0.2)
    told: list[str] = []

    def look() -> None:
        with pytest.raises(Unavailable, match="does not answer"):
            command.main([str(tmp_path / "silent" / "file")], standalone_mode=False, obj=SimpleNamespace(client=nullcontext))
        told.append("said")

    with silent_mount(tmp_path / "silent"):
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(HUNG_S)
        seen = list(told)
    looking.join()
    assert seen, "hung"


def test_stats_and_top_show_what_is_done(node: Node, tree: Path) -> None:
    """Workers report every 5 s, later on a busy machine; the work goes on until both have ended."""
    words = ("--interval", "15", "--count", "1", "-o", "json")
    children = [
        subprocess.Popen([*node.command, name, *words], stdout=subprocess.PIPE, env=node.environment(), text=True)
        for name in ("stats", "top")
    ]
    try:
        while any(child.poll() is None for child in children):
            _work(tree)
        figures, top = (json.loads(child.communicate()[0]) for child in children)
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert figures["ops_per_second"] > 0 and figures["entries_per_second"] > 0
    assert figures["operation_ms"] > 0 and all(row["p99_ms"] > 0 for row in top["operations"] if row["operation"] in ("create", "write"))
    assert figures["free_segments"] > 0 and figures["daemon_bytes"] > 0
    assert [row["directory"] for row in top["mounts"]] == [str(node.mountpoint)] and top["mounts"][0]["ops_per_second"] > 0
    assert {row["operation"] for row in top["operations"]} >= {"create", "write"}, top
    for name in ("stats", "top"):
        text = shown(node, name, "--interval", "0.1", "--count", "1")
        assert "OPS/s" in text and not too_wide(text)


def test_profile_tells_which_operations_on_which_files(node: Node, tree: Path, tmp_path: Path) -> None:
    """The work goes on until the command has ended, so it is seen whenever it begins to look."""
    words = (*node.command, "profile", str(node.mountpoint), "--for", "1.5", "--count", "256", "-o", "json")
    answer = tmp_path / "answer"  # longer than a pipe holds
    with answer.open("w") as out, subprocess.Popen(words, stdout=out, env=node.environment()) as child:
        while child.poll() is None:
            _work(tree)
            with (tree / "synced").open("wb") as file:
                file.write(b"x")
                file.flush()
                os.fsync(file.fileno())
    told = json.loads(answer.read_text())
    program = Path("/proc/self/comm").read_text().strip()
    rows = {(row["operation"], row["path"]): row for row in told["rows"] if program in row["programs"]}
    for place in (("create", tree / "made0"), ("unlink", tree / "made7"), ("fsync", tree / "synced")):
        row = rows[place[0], str(place[1])]
        assert row["count"] >= 1 and row["most_ms"] >= row["mean_ms"] > 0 and row["uids"] == [0] and row["errors"] == 0
    assert told["operations"] >= sum(row["count"] for row in told["rows"]) > 20 and told["mount"] == str(node.mountpoint)


def test_profile_refuses_what_is_no_mount_and_fits_a_terminal(node: Node) -> None:
    for path in ("/proc", str(node.mountpoint / "nothing")):
        with pytest.raises(BuildError, match="is no mount of this node") as refused:
            node.cli("profile", path)
        assert str(node.mountpoint) in str(refused.value)
    text = shown(node, "profile", str(node.mountpoint), "--for", "0.3")
    assert not too_wide(text)


def _work(tree: Path) -> None:
    for number in range(20):
        (tree / f"made{number}").write_bytes(b"x")
        (tree / f"made{number}").unlink()


def test_gc_says_what_collection_would_do_and_does_nothing(node: Node) -> None:
    node.cli("device", "collect", "stop")
    before = node.ask("device", "collect", "status")["figures"]
    for number in range(32):  # segments of this device have 4 MiB
        (node.mountpoint / f"gc{number}").write_bytes(os.urandom(1 << 20))
    node.cli("flush", str(node.mountpoint))
    for number in range(32):
        if number % 8:
            (node.mountpoint / f"gc{number}").unlink()
    node.cli("flush", str(node.mountpoint))
    told = await_true("sparse segments", lambda: (made := node.ask("gc"))["sets"] and made, HUNG_S)
    assert told["when"] == "stopped" and 0 < told["dead_percent_low"] <= told["dead_percent"]
    assert told["segments_free"] < told["segments_total"]
    freed, copied, live = (sum(one[name] for one in told["sets"]) for name in ("freed_bytes", "copied_bytes", "live_bytes"))
    assert freed > 0 and copied >= live > 0
    for which in (node.volume, "1", node.ask("device", "show", "1")["uuid"]):  # all data is of this volume, on this device
        await_true("the same plan", lambda which=which: node.ask("gc", which)["sets"] == node.ask("gc")["sets"], HUNG_S)
    node.cli("volume", "create", "empty-of-gc")
    empty = node.ask("gc", "empty-of-gc")
    assert not empty["sets"] and not empty["left"]
    text = shown(node, "gc")
    assert "It would free" in text and "Collection is stopped" in text and not too_wide(text)
    assert node.ask("device", "collect", "status")["figures"]["copied_bytes"] == before["copied_bytes"], "nothing was done"
    node.cli("device", "collect", "start")
    await_true("collection", lambda: all(one["how"] != "by itself" for one in node.ask("gc")["sets"]), HUNG_S)
    assert node.ask("device", "collect", "status")["figures"]["copied_bytes"] > before["copied_bytes"]


def test_gc_of_a_name_that_is_none(node: Node) -> None:
    node.cli("gc", "nothing-of-this-name", accept=(2,))
    said = " ".join(shown(node, "gc", "nothing-of-this-name").split())
    assert "there is no volume or device 'nothing-of-this-name' (volumes: " in said and node.volume in said and "devices: 1 (" in said
