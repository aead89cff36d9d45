"""What the set-up of a checkout leaves alone."""

from __future__ import annotations

import runpy
import sys
import threading
from pathlib import Path

import pytest

from buildtools import prepare
from buildtools.say import CHECKOUT, BuildError


def test_nothing_is_installed_through_a_link_that_leads_out_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, other, ran = tmp_path / "checkout", tmp_path / "other", []
    checkout.mkdir()
    (other / "bin").mkdir(parents=True)
    (other / "bin" / "python").symlink_to("/bin/true")
    (checkout / ".venv").symlink_to(other)
    (checkout / "pyproject.toml").touch()
    monkeypatch.setattr(prepare, "CHECKOUT", checkout)
    monkeypatch.setattr(prepare, "VENV", checkout / ".venv")
    monkeypatch.setattr(prepare, "PYTHON", str(checkout / ".venv" / "bin" / "python"))
    monkeypatch.setattr(prepare, "run", lambda *words, **_options: ran.append(words))
    with pytest.raises(BuildError, match=r"leads to .*other.*remove the link"):
        prepare.venv()
    assert ran == [] and not (other / prepare.STAMP).exists()


def test_one_process_at_a_time_prepares_the_venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once took .venv away from each other: the second removed what had no pip yet."""
    said, finished = threading.Event(), threading.Event()
    monkeypatch.setattr(prepare, "CHECKOUT", tmp_path)
    monkeypatch.setattr(prepare, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(prepare, "PYTHON", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr(prepare, "venv_is_current", lambda _extras=False: finished.is_set())
    monkeypatch.setattr(prepare, "warn", lambda _text: said.set())
    ran: list[str] = []
    second = threading.Thread(target=prepare.venv)

    def run(*_words: object, what: str, **_options: object) -> None:
        ran.append(what)
        if what == "making .venv":
            (tmp_path / ".venv").mkdir()
            second.start()
            assert said.wait(60), "the second does not wait"
            finished.set()

    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(prepare, "run", run)
    prepare.venv()
    second.join(60)
    assert not second.is_alive() and ran == ["making .venv", "pip install"]


@pytest.mark.parametrize("words", [["test", "--help"], ["soak", "-h"], ["test", "tests/unit", "-h"]])
def test_help_of_the_tests_prepares_nothing_and_names_the_seed(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["build.py", *words])
    monkeypatch.setattr("buildtools.commands.run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(CHECKOUT / "build.py"), run_name="__main__")
    assert ended.value.code == 0 and "--seed N" in capsys.readouterr().out
