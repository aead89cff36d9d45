"""Whether `build.py test` builds the compiled program, and what it says when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildtools import binary, procs, ready
from buildtools.nodes import await_true
from buildtools.say import CHECKOUT, BuildError

PROGRAM = CHECKOUT / "dist" / "awsomefsd"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Builds that were begun; each succeeds, and from then on there is a program."""
    begun: list[float] = []
    monkeypatch.delenv("AWSOMEFSD_BINARY", raising=False)
    monkeypatch.delenv(ready.VARIABLE, raising=False)
    monkeypatch.setattr(binary, "check_tools", lambda: None)
    monkeypatch.setattr(binary, "current", lambda: PROGRAM if begun else None)

    def make(seconds: float) -> str:
        begun.append(seconds)
        return ""

    monkeypatch.setattr(ready, "_make", make)
    return begun


def test_a_first_build_is_too_long_and_that_is_said(made: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "_expected_s", lambda: ready.FIRST_S)
    said = ready.for_tests()
    assert not made and said.startswith("not built") and "30 minutes" in said and "build.py binary" in said
    monkeypatch.setenv(ready.VARIABLE, "3600")
    assert ready.for_tests() == "tests/posix and tests/packaging ran dist/awsomefsd" and made == [3600.0]


def test_a_cheap_build_is_made_once(made: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "_expected_s", lambda: ready.AGAIN_S)
    monkeypatch.setenv(ready.VARIABLE, "0")
    assert ready.for_tests().startswith("not built") and not made
    monkeypatch.delenv(ready.VARIABLE)
    assert "ran dist/" in ready.for_tests() and "ran dist/" in ready.for_tests()
    assert made == [ready.ALLOWED_S]


def test_what_stands_in_the_way_is_said(made: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> None:
        raise BuildError("missing: apt-get install -y patchelf")

    monkeypatch.setattr(binary, "check_tools", lacking)
    assert "install -y patchelf" in ready.for_tests()
    monkeypatch.setenv("AWSOMEFSD_BINARY", "/somewhere/awsomefsd")
    assert "/somewhere/awsomefsd" in ready.for_tests() and not made
    monkeypatch.delenv("AWSOMEFSD_BINARY")
    monkeypatch.setattr(binary, "check_tools", lambda: None)
    monkeypatch.setenv(ready.VARIABLE, "soon")
    with pytest.raises(BuildError, match="seconds"):
        ready.for_tests()


def test_a_build_that_takes_too_long_ends_with_its_compilers(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {note}.new; mv {note}.new {note}; wait"
    assert ready._run_all(["sh", "-c", "exit 3"], 60.0) == 3
    assert ready._run_all(["sh", "-c", script], 2.0) is None
    if note.exists():  # the machine was quick enough to begin it
        await_true("the end of the compiler", lambda: not procs.alive(int(note.read_text())), 60.0)


def test_a_build_of_other_sources_is_not_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "awsomefsd-1-x86_64"
    target.mkdir()
    monkeypatch.setattr(binary, "directory", lambda: target)
    assert binary.current() is None
    (target / "awsomefsd").touch()
    assert binary.current() is None, "nobody knows what it is of"
    stamp = tmp_path / "awsomefsd-1-x86_64.sources"
    stamp.write_text(binary.sources_digest() + "\n")
    assert binary.current() == target / "awsomefsd"
    stamp.write_text("0" * 64)
    assert binary.current() is None
