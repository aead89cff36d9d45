"""A volume whose processes have all died can be mounted again at once, without waiting for the TTL of the session that died with them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from awsomefsd.base.errors import FsError, Refused
from awsomefsd.base.types import SEGMENT_QUARANTINED, VolumeInfo
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.node.catalog import Catalog
from tests.rigs.metadata_service import Wire, host


def test_the_session_of_a_dead_mount_ends_and_its_segments_leave_quarantine(tmp_path: Path) -> None:
    with host(tmp_path) as node:

        def call(body: m.Body) -> m.Reply:
            assert node.service is not None
            reply = node.service.query(body)
            if isinstance(reply, m.Failed):
                raise FsError(reply.errno, reply.detail)
            return reply

        dead, next_ = Wire(node.socket_path), Wire(node.socket_path, mount=6)
        opened = dead.open_session()
        leased = dead.ask(m.Propose(2, opened.session, opened.epoch, [], c.LeaseSegments(1, 1 << 60)))
        busy = next_.ask(m.Propose(1, 0, 0, [], c.OpenSession(6, 1, "node", "boot", 1)))
        assert isinstance(busy, m.Failed) and busy.errno == errno.EBUSY
        Catalog(call).end_session_of(5)
        Catalog(call).end_session_of(5)  # harmless twice
        assert isinstance(next_.ask(m.Propose(2, 0, 0, [], c.OpenSession(6, 1, "node", "boot", 1))), m.SessionOpened)
        sessions = call(m.GetSessions())
        assert isinstance(sessions, m.Sessions) and [s.mount for s in sessions.sessions if not s.ended] == [6]
        if isinstance(leased, m.SegmentsLeased):
            segments = call(m.GetSegments([info.segment for info in leased.segments]))
            assert isinstance(segments, m.Segments) and all(info.state != SEGMENT_QUARANTINED for info in segments.segments)
        else:
            pytest.fail(f"no segment was leased: {leased}")


def test_a_client_is_told_where_a_volume_can_be_mounted() -> None:
    """It may not list nodes, and was told that instead."""

    def call(body: m.Body) -> m.Reply:
        if isinstance(body, m.GetVolumes):
            return m.Volumes([VolumeInfo(1, "u", "vol", 0, 0, 0, 1, 0, 0, 0, 0, "n1")])
        raise FsError(errno.EACCES, "ListNodes is for nodes")

    with pytest.raises(Refused, match="n1"):
        Catalog(call).mountable("vol", "client")
