"""Errors of system calls that a test expects."""

from __future__ import annotations

from typing import Any

import pytest


def fails(code: int) -> Any:
    """Expects an OSError with this errno."""
    return pytest.raises(OSError, match=rf"\[Errno {code}\]")
