"""What a command says while it takes long."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from awsomefsd.cli import main, waiting


class _Terminal(io.StringIO):
    """A terminal that tells when `awaited` is shown."""

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self.awaited = awaited
        self.seen = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.awaited in text:
            self.seen.set()
        return written


def test_long_work_is_shown_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal("second piece")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(waiting, "SILENT_S", 0.0)
    monkeypatch.setattr(waiting, "PAUSE_S", 0.01)
    with waiting.LongWork("first piece") as shown:
        shown.text = "second piece"
        assert terminal.seen.wait(60)
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_short_work_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal("work")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(waiting, "SILENT_S", 600.0)
    with waiting.LongWork("work"):
        pass
    assert not terminal.getvalue()


def test_nothing_is_shown_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(waiting, "SILENT_S", 0.0)
    with waiting.LongWork("work") as shown:
        assert shown._thread.ident is None
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "slow"), [("self-check", "node.self_check.run"), ("doctor --preflight", "node.doctor.examine.preflight")]
)
def test_commands_that_look_long_say_so(words: str, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal("second")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(waiting, "SILENT_S", 0.0)

    def look(*_: object) -> list[object]:
        assert terminal.seen.wait(60), "nothing is shown meanwhile"
        return []

    monkeypatch.setattr(f"awsomefsd.{slow}", look)
    assert main.run(words.split()) == main.OK
