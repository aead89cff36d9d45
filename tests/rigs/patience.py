"""Limits of time for a machine that stands still now and then: no mirror is given up, and no call ends, because a test had to wait."""

from __future__ import annotations

import pytest

from awsomefsd.io.pool import ensemble, fanout, remote_server, server, server_connection
from awsomefsd.io.transport import link

LONG_MS = 120_000
LIMITS = [
    (ensemble, "SEGMENT_STALL_MS"), (ensemble, "ENSEMBLE_STALL_MS_ALL"), (ensemble, "ENSEMBLE_BEHIND_MS_MAX"),
    (ensemble, "ENSEMBLE_SLOW_MS_MIN"), (fanout, "SEGMENT_STALL_MS"), (fanout, "ENSEMBLE_STALL_MS_ALL"),
    (fanout, "SEGMENT_DIAL_MS_MAX"), (remote_server, "SEGMENT_DIAL_MS_MAX"), (remote_server, "SEGMENT_ANSWER_MS_MAX"),
    (server_connection, "SEGMENT_DIAL_MS_MAX"), (server, "HANDSHAKE_MS_MAX"), (link, "SEGMENT_STALL_MS"),
    (link, "SEGMENT_RECORD_MS_MAX"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For modules that import it: real segment servers have limits too short for a busy machine.  A test of a limit sets it itself."""
    for module, name in LIMITS:
        monkeypatch.setattr(module, name, LONG_MS)
