"""A volume whose processes have all died can be mounted again at once, without waiting for the TTL of the session that died with them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from awsomefsd.base.errors import AlreadyExists, ConfigError, FsError, Refused
from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.base.types import SEGMENT_QUARANTINED, SessionInfo, VolumeInfo
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.nodes import ListNodes, NodeInfo, Nodes
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


@pytest.mark.parametrize(
    ("may_list", "here", "words"),
    [(True, "/mnt/a, /mnt/b", "on one, two; on this node at /mnt/a, /mnt/b"), (True, "", "on one, two;"), (False, "", "on u1, u2;")],
)
def test_a_volume_that_cannot_be_deleted_names_who_has_it_mounted(may_list: bool, here: str, words: str) -> None:
    def call(body: m.Body) -> m.Reply:
        if isinstance(body, m.GetVolumes):
            return m.Volumes([VolumeInfo(1, "u", "vol", 0, 0, 0, 1, 0, 0, 0, 0, "")])
        if isinstance(body, m.GetSessions):
            return m.Sessions([SessionInfo(1, 1, 7, volume, node, "b", 1, 0, 0, ended) for volume, node, ended in SESSIONS])
        if isinstance(body, ListNodes) and may_list:
            named = (("u1", "two"), ("u2", "one"), ("u3", "three"))
            return Nodes([NodeInfo(uuid, name, "node", "active", "", "", {}, 0, "", 3, True, 0, b"") for uuid, name in named])
        raise FsError(errno.EBUSY if isinstance(body, m.Propose) else errno.EACCES, "as the machine words it")

    with pytest.raises(Refused, match=f"^volume vol is mounted {words}.*awsomefsd umount"):
        Catalog(call).delete_volume("vol", destroy=True, here=here)


SESSIONS = ((1, "u2", False), (1, "u1", False), (1, "u1", False), (1, "u3", True), (2, "u3", False))


def test_a_word_that_is_none_for_names_is_told_what_is_possible() -> None:
    with pytest.raises(ConfigError, match="names=eventually: names of a volume are durable or delegated"):
        Catalog(lambda body: pytest.fail(f"{body} is asked")).set_volume("vol", -1, -1, "", "eventually")


def test_what_a_leader_would_leave_out_is_refused_before_it_is_asked() -> None:
    """An older leader knows CreateVolume, and not its field for names: the volume would be made without."""

    def call(body: m.Body) -> m.Reply:
        if body == m.GetStatus(of_leader=True):  # this node's own service may be behind
            return m.Status({"level": level})
        if isinstance(body, m.GetVolumes):
            return m.Volumes([VolumeInfo(1, "u", "vol", 0, 0, 0, 1, 0, 0, 0, 0, "")])
        proposed.append(body)
        return m.Made(1)

    proposed: list[m.Body] = []
    level = 2
    with pytest.raises(ConfigError, match="names=eventually: names of a volume are durable or delegated"):
        Catalog(call).create_volume("vol", 0, 0, 0o755, 0, 0, "eventually")
    with pytest.raises(FsError, match=rf"needs level {DELEGATION}, and the cluster acts at level 2.*upgrade finalize") as caught:
        Catalog(call).create_volume("vol", 0, 0, 0o755, 0, 0, "delegated")
    assert caught.value.errno == errno.EOPNOTSUPP and not proposed
    assert Catalog(call).create_volume("vol", 0, 0, 0o755, 0, 0, "durable").name == "vol", "what every build knows needs no level"
    Catalog(call).create_volume("vol", 0, 0, 0o755, 0, 0)
    level = DELEGATION
    Catalog(call).create_volume("vol", 0, 0, 0o755, 0, 0, "delegated")
    Catalog(call).create_volume("vol", 0, 0, 0o755, 0, 0, "durable")
    Catalog(call).create_volume("vol", 0, 0, 0o755, 0, 0)  # without a word: delegated, where that is known
    assert [body.command.names for body in proposed if isinstance(body, m.Propose)] == [0, 0, 1, 0, 1]  # type: ignore[union-attr]


def test_a_volume_is_changed_as_a_whole_or_not_at_all() -> None:
    """A name that another volume has is found before anything is proposed: the names would be delegated, and the command have failed."""

    def call(body: m.Body) -> m.Reply:
        if isinstance(body, m.GetVolumes):
            return m.Volumes([VolumeInfo(number, "u", name, 0, 0, 0, 1, 0, 0, 0, 0, "") for number, name in ((1, "one"), (2, "two"))])
        proposed.append(body)
        return m.Done()

    proposed: list[m.Body] = []
    with pytest.raises(AlreadyExists, match="'two' exists already"):
        Catalog(call).set_volume("one", -1, -1, "two", "delegated")
    assert not proposed
    Catalog(call).set_volume("one", -1, -1, "one", "delegated")
    assert [type(body.command) for body in proposed if isinstance(body, m.Propose)] == [c.SetNames, c.SetVolume]
