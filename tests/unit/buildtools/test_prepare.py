"""What the set-up of a checkout leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildtools import prepare
from buildtools.say import BuildError


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
