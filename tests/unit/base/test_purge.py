"""`leave --purge` deletes what this program makes in the state directory, and nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import awsomefsd
from awsomefsd.base import identity


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    identity.init(made)
    for name in identity.OWN_NAMES:
        if name.endswith((".json", "recovering")) and name[4:5] != ".":
            (made / name).write_text("{}")
        else:
            (made / name / "below").mkdir(parents=True)
    (made / "devices.json.new").write_text("")
    (made / "conflicts" / "vol-1").mkdir(parents=True)
    (made / "conflicts" / "vol-1" / "file").write_text("the only copy")
    (made / "thesis.txt").write_text("somebody's")
    (made / "photos").mkdir()
    return made


def names(state_dir: Path) -> set[str]:
    return {entry.name for entry in state_dir.iterdir()}


def test_what_others_put_there_and_what_could_not_be_committed_stays(state_dir: Path) -> None:
    assert identity.has_conflicts(state_dir)
    foretold = identity.kept_by_purge(state_dir)
    assert identity.purge(state_dir) == foretold == ["conflicts", "photos", "thesis.txt"]
    assert names(state_dir) == {"conflicts", "photos", "thesis.txt", "lock"}
    assert (state_dir / "conflicts" / "vol-1" / "file").read_text() == "the only copy"


def test_conflicts_go_if_that_is_wanted(state_dir: Path) -> None:
    assert identity.purge(state_dir, conflicts=True) == ["photos", "thesis.txt"]
    assert not identity.has_conflicts(state_dir)
    identity.init(state_dir)


def test_a_link_in_the_place_of_a_directory_is_not_followed(state_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("kept")
    (state_dir / "backup" / "below").rmdir()
    (state_dir / "backup").rmdir()
    (state_dir / "backup").symlink_to(elsewhere)
    identity.purge(state_dir)
    assert (elsewhere / "file").read_text() == "kept" and "backup" not in names(state_dir)


def test_every_name_that_the_program_makes_there_is_known() -> None:
    """Each literal after `state_dir /` is deleted by a purge, or stays on purpose."""
    found = set()
    for path in Path(awsomefsd.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant)):
                continue
            if re.search(r"\bstate_dir\)?$", ast.unparse(node.left)):
                found.add(node.right.value)
    assert {"meta", "pki", "node.json"} <= found
    assert found - set(identity.OWN_NAMES) == {"node.json", "log", "conflicts"}
    assert {identity.StateLock.name, identity.WaitingLock.name, identity.SUPERVISOR_LOCK} == {"lock", "waiting.lock", "supervisor.lock"}
