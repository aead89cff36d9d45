"""The machine that most tests of its rules begin with."""

from __future__ import annotations

import pytest

from tests.rigs.machine_driver import Drive


@pytest.fixture
def drive() -> Drive:
    """A machine with a volume and a session."""
    made = Drive()
    made.make_volume()
    made.open()
    return made
