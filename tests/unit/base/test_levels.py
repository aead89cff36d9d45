"""The level that a build announces, and the one above it that is unfinished."""

from __future__ import annotations

import pytest

from awsomefsd.base import levels
from awsomefsd.base.errors import ConfigError


def test_an_unfinished_level_is_announced_by_tests_only(monkeypatch):
    assert levels.UNFINISHED > levels.LEVEL == levels.supported()
    monkeypatch.setenv(levels.VARIABLE, str(levels.UNFINISHED))
    with pytest.raises(ConfigError):
        levels.supported()
    monkeypatch.setenv(levels.UNFINISHED_VARIABLE, "1")
    assert levels.supported() == levels.UNFINISHED
    monkeypatch.delenv(levels.VARIABLE)
    assert levels.supported() == levels.UNFINISHED
    monkeypatch.setenv(levels.UNFINISHED_VARIABLE, "yes")
    assert levels.supported() == levels.LEVEL
