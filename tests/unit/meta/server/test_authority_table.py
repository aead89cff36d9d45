"""Who may ask what over the metadata port, row by row: every request and command, by every role, with every session, mount and node.

The table says what is promised, and does not look at the server's own (meta/server/permissions.py).  A new request or command fails here
until it has a row.
"""

from __future__ import annotations

import errno
import functools
import itertools
import uuid
from typing import Any, NamedTuple, get_args

import pytest
from msgspec import structs

from awsomefsd.base.rule_levels import POOLS
from awsomefsd.base.tls import PeerIdentity
from awsomefsd.base.types import node_mount
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.server.authorizer import Authorizer
from awsomefsd.meta.state.rows import NodeRow
from tests.rigs.machine_driver import Drive
from tests.unit.meta.server.test_service import filled

ME, OTHER, READER, REMOVED, STRANGER = (str(uuid.UUID(int=number)) for number in range(7, 12))
ROLES = {ME: "node", OTHER: "node", READER: "client", REMOVED: "node"}
MINE, READERS, THEIRS, GONE = 3, 4, 5, 6  # sessions; GONE is known to nobody any more
NEXT = 7  # the session that is opened next, whosever it will be
MOUNTS = {30: ME, 40: READER, 50: OTHER}
SESSIONS = {MINE: ME, READERS: READER, THEIRS: OTHER}
OWN_MOUNT = {ME: 30, READER: 40, REMOVED: 60, STRANGER: 61}

REQUEST_ROWS = {
    "everybody": "Lookup GetAttr ReadDir ReadLink GetXattr ListXattr GetLayout GetStatFs GetSegments GetDevices GetVolumes GetParent"
    " TestLock GetSessions GetStatus Report GetReports Cancel GetNames GetCsiVolumes GetClaims ListSnapshots",
    "own session": "WaitLock GetLocks GetOrphans GetInherited Renew GetLease ReportLeases AwaitRecalls AnswerRecall ExtendRecall"
    " ReleaseLeases ReturnLeases AwaitSpaceRecall GetRows AnswerFlush",
    "role node": "Follow GetOwnSegments GetSparse GetPieces GetFilePieces GetLiveSegments ListNodes GetNode ListTokens ListCas GetMembers"
    " GetSightings GetQuarantine GetCheckpoints GetBays GetPool GetNeeds GetStaleBays ListStores GetStoreSecret GetPoolVolumes CountNeeds"
    " FlushVolumes",
    "about itself": "NodeReport ReportDevices",
    "role node about itself": "ReportCensus",
    "own mount": "Hello",
    "nobody": "ChangeMembers TransferLead",
}
COMMAND_ROWS = {
    "own session": "LeaseSegments Reserve Create Link Unlink Rmdir Rename SetAttr SetXattr RemoveXattr ReleaseOrphan Commit WriteData"
    " SetLock Tmpfile SetAtimes Fallocate CopyRange Draw AcquireLease ReleaseLease Apply GrantInodes LeaseBays",
    "itself on the connection's mount": "OpenSession OpenShared OpenSnapshot",
    "own session, or role node": "EndSession ClearQuarantine",
    "role node about itself": "OpenCollector KeepForCheckpoint CheckpointDone ReturnSegments AttachDevice BaysTrimmed SetSegmentServer"
    " BaysWrong BaysSeen",
    "about itself": "DescribeNode",
    "about itself, or role node": "ClaimVolume EndClaims",
    "role node": "AddDevice CreateVolume SetVolume DeleteVolume Relocate RegisterReader AdvanceReader RemoveReader AddNode SetNodeState"
    " PutToken RevokeToken PutCa DropCa RaiseLevel MakeCsiVolume SetCsiVolume DropCsiVolume GrowDevice DrainDevice RemoveDevice SetNames"
    " SetDeviceEra AddPoolDevice SetRedundancy SetPool AddStore StoreReady SetStore DetachStore SetMaintenance"
    " CreateSnapshots DeleteSnapshot DrainPoolDevices"
    " BeginEra",
    "nobody": "Reap NoOp ChangeMembership RepairRows SetCarries SetAbsent Init Recover KeepSegments DropSegments AdoptSegments"
    " PlanMirror MirrorMade DropBays SetDeviceState NeedSegments",
}


class Case(NamedTuple):
    who: str
    session: int
    mount: int  # that the request names, where it names one; the connection's is always the asker's own
    about: str


def row_of(name: str, table: dict[str, str]) -> str:
    [found] = [rule for rule, names in table.items() if name in names.split()]
    return found


def allowed(rule: str, case: Case) -> bool:
    """What the row promises for a member of the cluster."""
    role, own = ROLES[case.who], SESSIONS.get(case.session, case.who) == case.who and case.session not in (0, NEXT)
    itself = case.about == case.who
    return {
        "everybody": True,
        "own session": own,
        "role node": role == "node",
        "about itself": itself,
        "own mount": MOUNTS.get(case.mount, case.who) == case.who,
        "nobody": False,
        "itself on the connection's mount": itself and case.mount == OWN_MOUNT[case.who],
        "own session, or role node": own or role == "node",
        "role node about itself": itself and role == "node",
        "about itself, or role node": itself or role == "node",
    }[rule]


class Rows:
    applied_index = 1

    def node_rows(self) -> list[NodeRow]:
        made = []
        for node, role in ROLES.items():
            row = filled(NodeRow)
            row.node, row.role, row.state = node, role, "removed" if node == REMOVED else "active"
            made.append(row)
        return made

    def session_node(self, session: int) -> str | None:
        return SESSIONS.get(session)

    def mount_node(self, mount: int) -> str | None:
        return MOUNTS.get(mount)

    def was_opened(self, session: int) -> bool:
        return session < NEXT


class Leading:
    def rows(self) -> Rows:
        return Rows()

    def leads(self) -> bool:
        return True


plain = functools.cache(filled)
AUTHORIZER = Authorizer(Leading(), frozenset(), lambda: 1)


def with_fields(said: Any, case: Case) -> Any:
    values = {"session": case.session, "mount": case.mount, "node": case.about}
    return structs.replace(said, **{name: value for name, value in values.items() if name in said.__struct_fields__})


def asked(type_: type, case: Case) -> m.Body:
    said = with_fields(plain(type_), case)
    if type_ is m.WaitLock:
        return m.WaitLock(7, case.session, 1, [], plain(c.SetLock))
    return said if type_ in get_args(m.Body) else m.Propose(1, case.session, 1, [], said)


NUMBERS = (0, MINE, READERS, THEIRS, GONE, NEXT)
CASES = [Case(*case) for case in itertools.product((ME, READER), NUMBERS, (30, 40, 50, 90), (ME, READER, OTHER, ""))]
EVERY = [kind for kind in (*get_args(m.Body), *get_args(c.AnyCommand)) if kind is not m.Propose]


def refused(case: Case, body: m.Body, mount: int) -> bool:
    who = PeerIdentity(case.who, ROLES.get(case.who, "node"))
    return bool(AUTHORIZER.refusal(who, mount, body))


def test_every_request_and_command_has_one_row() -> None:
    for table, kinds in ((REQUEST_ROWS, set(get_args(m.Body)) - {m.Propose}), (COMMAND_ROWS, set(get_args(c.AnyCommand)))):
        named = " ".join(table.values()).split()
        assert sorted(named) == sorted(kind.__name__ for kind in kinds)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_a_row(kind: type) -> None:
    command = kind not in get_args(m.Body)
    rule = row_of(kind.__name__, COMMAND_ROWS if command else REQUEST_ROWS)
    for case in CASES:
        body = asked(kind, case)
        mount = case.mount if kind is m.Hello else OWN_MOUNT[case.who]
        if rule == "own session, or role node" and command:
            body = structs.replace(body, session=0)  # such a command names its session itself
        assert refused(case, body, mount) == (not allowed(rule, case)), (rule, case, body)
    for who in (REMOVED, STRANGER):
        case = Case(who, GONE, OWN_MOUNT[who], who)
        assert refused(case, asked(kind, case), OWN_MOUNT[who]), who


def test_a_nodes_own_number_is_its_own() -> None:
    for who, named, fine in ((ME, ME, True), (ME, OTHER, False), (READER, READER, True), (READER, ME, False)):
        assert refused(Case(who, 0, 0, who), m.Hello(m.PROTOCOL_VERSION, node_mount(named)), 0) == (not fine)


@pytest.mark.parametrize("kind", get_args(c.AnyCommand), ids=lambda kind: kind.__name__)
def test_a_mount_that_is_not_known_changes_nothing(kind: type) -> None:
    """Neither a number that never opened a session, nor one of a removed node; whatever session the command names, and over the unix socket
    too: the machine itself refuses it."""
    drive = Drive(level=POOLS)
    drive.make_volume()
    drive.ok(c.AddNode(REMOVED, "gone", "node", bytes(32), level=POOLS), session=0, epoch=0)
    drive.open(60, node=REMOVED)
    drive.ok(c.EndSession(drive.session, drive.epoch, False), session=0, epoch=0, mount=0)
    drive.ok(c.SetNodeState(REMOVED, "removed"), session=0, epoch=0, mount=0)
    drive.open(30, node=ME)
    for number in (60, 90):
        for session, epoch in ((0, 0), (drive.session, drive.epoch), (1 << 40, 1)):
            command = plain(kind)
            assert drive.errno(command, unique=1, session=session, epoch=epoch, mount=number) == errno.ESTALE, (kind, number)


def test_a_node_that_does_not_lead_may_not_have_heard_of_a_session() -> None:
    """It only says who leads: a refusal there would be the end of a worker whose session is younger than what that node has applied."""
    follower = Leading()
    follower.leads = lambda: False  # type: ignore[method-assign]
    authorizer = Authorizer(follower, frozenset(), lambda: 1)
    assert not authorizer.refusal(PeerIdentity(ME, "node"), 30, m.Renew(NEXT, 1, 0))
    assert authorizer.refusal(PeerIdentity(ME, "node"), 30, m.Renew(THEIRS, 1, 0))


def test_a_session_opens_for_a_connection_that_has_a_mount() -> None:
    """Number 0 is nobody's: whoever opened a session with it first would have it before all others."""
    for kind in (c.OpenSession, c.OpenShared):
        case = Case(ME, 0, 0, ME)
        assert refused(case, asked(kind, case), 0), kind
