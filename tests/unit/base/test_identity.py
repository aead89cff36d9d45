"""Node identity, its lock, and the small durable files."""

from __future__ import annotations

import json
import os
import signal
import uuid
from pathlib import Path

import pytest

from awsomefsd.base import durable, identity
from awsomefsd.base.errors import AlreadyExists, Corrupt, FormatTooNew, NotFound, Refused


def test_init_once(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    with pytest.raises(NotFound, match="awsomefsd init"):
        identity.load(state)
    made = identity.init(state, site=3)
    assert identity.load(state) == made and made.site == 3 and uuid.UUID(made.cluster) != uuid.UUID(made.node)
    with pytest.raises(AlreadyExists, match=made.node):
        identity.init(state)
    assert identity.load(state) == made
    assert state.stat().st_mode & 0o777 == 0o700 and (state / "node.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"cluster": 3, "node": "x", "site": 0, "format": 1}', "\xff"])
def test_damaged_identity(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Corrupt, match=r"node\.json"):
        identity.load(tmp_path)


def test_newer_format_is_refused(tmp_path: Path) -> None:
    identity.init(tmp_path)
    value = json.loads((tmp_path / "node.json").read_text())
    (tmp_path / "node.json").write_text(json.dumps({**value, "format": 99, "more": 1}))
    with pytest.raises(FormatTooNew, match="upgrade"):
        identity.load(tmp_path)


def test_lock_is_exclusive_and_names_its_holder(tmp_path: Path) -> None:
    with identity.StateLock(tmp_path), pytest.raises(Refused, match=f"process {os.getpid()}; fsck needs it exclusively"):
        identity.StateLock(tmp_path, "fsck")
    identity.StateLock(tmp_path).release()


def test_who_is_patient_gets_the_lock_when_its_holder_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [identity.StateLock(tmp_path)]
    looks: list[float] = []

    def let_go_at_the_third(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            held[0].release()

    monkeypatch.setattr(identity.time, "sleep", let_go_at_the_third)
    identity.StateLock(tmp_path, "a daemon", patience_s=600).release()
    assert len(looks) == 3


def test_who_makes_a_node_waits_for_the_end_of_one_that_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`leave --purge` ends when node.json is gone; the daemon that leaves deletes the rest meanwhile."""
    held = identity.StateLock(tmp_path)
    monkeypatch.setattr(identity.time, "sleep", lambda seconds: held.release())
    made = identity.init(tmp_path)
    with identity.StateLock(tmp_path), pytest.raises(Refused, match="in use by process"):
        identity.init(tmp_path)  # a node's daemon does not end soon
    with pytest.raises(AlreadyExists, match=made.node):
        identity.init(tmp_path)


def test_a_lock_of_a_process_that_was_killed_refuses_nobody(tmp_path: Path) -> None:
    """Its file is still there, and names it."""
    (tmp_path / "lock").write_text("1234567\n")
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        identity.StateLock(tmp_path)
        os.write(writer, b"x")
        signal.pause()
    try:
        assert os.read(reader, 1) == b"x"
        with pytest.raises(Refused, match=f"in use by process {pid};.*stop the daemon first"):
            identity.StateLock(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
    assert (tmp_path / "lock").read_text() == f"{pid}\n"
    identity.StateLock(tmp_path).release()


def test_no_directory_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="--state-dir"):
        identity.init(tmp_path / "file" / "state")


def test_write_replaces_whole_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    durable.write_json(path, {"a": 1})
    (tmp_path / "a.json.new").write_text("torn by a crash that is longer than the next content")
    durable.write_json(path, {"b": 2})
    assert durable.read_json(path) == {"b": 2} and os.listdir(tmp_path) == ["a.json"]
    assert durable.read_json(tmp_path / "none") is None


def test_crash_before_the_rename_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    durable.write_json(path, {"a": 1})

    def crash(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        durable.write_json(path, {"b": 2})
    assert durable.read_json(path) == {"a": 1}
