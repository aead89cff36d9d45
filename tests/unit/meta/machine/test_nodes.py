"""Rows of nodes, tokens and authorities: the rules, and that keys and verifiers come out by no request of the wire."""

from __future__ import annotations

import errno

import msgspec
import pytest

from awsomefsd.base.errors import FormatTooNew
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.limits import CAS_MAX, DEAD_TOKEN_KEPT_MS, NODES_MAX, REMOVED_NODE_KEPT_MS
from awsomefsd.base.rule_levels import DELEGATION, MENDED_RULES
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages import nodes as n
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.redaction import hidden
from tests.rigs.machine_driver import START_NS, Drive

NOW_MS = START_NS // 1_000_000
HOUR = 3_600_000
KEY = b"k" * 32


def add(node: str = "n1", key: bytes = KEY, token: str = "", role: str = "node", **fields: object) -> c.AddNode:
    given = {"level": LEVEL} | fields
    return c.AddNode(node, f"name-{node}", role, key, token, **given)  # type: ignore[arg-type]


def token(identity: str = "t", uses: int = 1, expires_ms: int = NOW_MS + HOUR, role: str = "node") -> c.PutToken:
    return c.PutToken(identity, "join", role, b"hash-of-" + identity.encode(), expires_ms, uses)


def nodes(drive: Drive) -> dict[str, str]:
    return {row.node: row.state for row in drive.ask(n.ListNodes(True)).nodes}


def refusal(drive: Drive, command: c.Command, **fields: object) -> str:
    reply = drive.apply(command, **fields)
    assert isinstance(reply, m.Failed) and reply.errno == errno.EPERM
    return reply.detail


def test_a_node_is_added_described_and_removed() -> None:
    drive = Drive()
    drive.ok(add(control="h:1", labels={"zone": "a"}))
    [row] = drive.ask(n.ListNodes()).nodes
    assert (row.name, row.state, row.control, row.labels, row.carries) == ("name-n1", "active", "h:1", {"zone": "a"}, False)
    drive.ok(c.DescribeNode("n1", "other", "h:2", "h:3", {"zone": "b"}, "2.0", 3))
    drive.ok(c.SetNodeState("n1", "cordoned"))
    [row] = drive.ask(n.GetNode("n1")).nodes
    assert (row.name, row.metadata, row.version, row.level, row.state) == ("other", "h:3", "2.0", 3, "cordoned")
    drive.ok(c.SetNodeState("n1", "removed"))
    drive.ok(c.SetNodeState("n1", "removed"))
    assert drive.ask(n.ListNodes()).nodes == [] and nodes(drive) == {"n1": "removed"}
    assert drive.errno(c.SetNodeState("n1", "active")) == errno.ENOENT
    assert drive.errno(c.DescribeNode("n1", "x", "", "", {}, "", 0)) == errno.ENOENT
    assert "was removed" in refusal(drive, add())
    drive.machine.flush()
    assert check(drive.txn) == []


def test_the_level_goes_up_when_every_node_knows_it() -> None:
    drive = Drive(level=1)
    drive.ok(add("n1", level=2, version="2"))
    drive.ok(add("n2", level=1, version="1"))
    assert "name-n2" in refusal(drive, c.RaiseLevel(2)) and drive.machine.level == 1
    drive.ok(c.DescribeNode("n2", "name-n2", "", "", {}, "2", 2))
    drive.ok(c.RaiseLevel(2))
    drive.ok(c.RaiseLevel(1))
    drive.reload()
    assert drive.machine.level == 2, "it never goes back"
    assert "upgrade awsomefsd on it" in refusal(drive, add("n3", level=1))
    drive.ok(add("n3", level=2))
    assert "name-n3" in refusal(drive, c.RaiseLevel(3))
    drive.ok(c.SetNodeState("n3", "removed"))


def test_a_client_that_stays_behind_is_named_and_holds_the_level_back_until_it_is_removed() -> None:
    """Its mounts go by the rules of its build, so it counts as a node does; one command ends that, whatever it says of itself."""
    drive = Drive(level=2)
    drive.ok(add("n1", level=3))
    drive.ok(add("n2", b"c" * 32, role="client", level=2))
    assert "name-n2" in refusal(drive, c.RaiseLevel(3))
    drive.ok(c.SetNodeState("n2", "removed"))
    drive.ok(c.RaiseLevel(3))


def test_a_build_pinned_to_a_lower_level_takes_no_newer_entry() -> None:
    drive = Drive(level=1)
    old = Machine(drive.txn, level=1)
    entry = drive.entry(add())
    entry.version = 2
    with pytest.raises(FormatTooNew, match="upgrade this node"):
        old.apply(entry)


def test_a_build_below_the_level_of_the_cluster_takes_no_entry() -> None:
    """It would apply old commands by rules that the cluster has left, and have another state than all others."""
    drive = Drive(level=LEVEL - 1)
    old = Machine(drive.txn, level=LEVEL - 1)
    old.apply(drive.entry(add()))
    assert old.applied_index == drive.index and not old.state.acts_at(LEVEL)
    old.apply(drive.entry(c.RaiseLevel(LEVEL)))
    assert old.state.acts_at(LEVEL)
    old.flush()
    with pytest.raises(FormatTooNew, match=f"acts at level {LEVEL}, this build knows {LEVEL - 1}; upgrade this node"):
        Machine(drive.txn, level=LEVEL - 1).apply(drive.entry(c.NoOp()))


def test_a_rule_asks_for_the_level_of_the_state_alone() -> None:
    """What a node's own build knows is no part of it: two voters would apply one entry in two ways."""
    drive = Drive(level=2)
    assert drive.machine.state.acts_at(2) and not drive.machine.state.acts_at(MENDED_RULES)
    drive.ok(c.RaiseLevel(LEVEL))
    drive.reload()
    assert drive.machine.state.acts_at(MENDED_RULES) and MENDED_RULES <= LEVEL == c.COMMAND_VERSION


def test_uses_of_a_token_are_counted_once_a_node() -> None:
    drive = Drive()
    drive.ok(token(uses=2))
    for _ in range(3):
        drive.ok(add("n1", token="t"))
    assert drive.ask(n.ListTokens()).tokens[0].uses_left == 1
    drive.ok(add("n2", token="t"))
    assert "used up" in refusal(drive, add("n3", token="t"))
    drive.ok(add("n2", token="t"))  # asks again because the answer was lost
    assert "another key" in refusal(drive, add("n2", b"x" * 32, token="t"))
    assert nodes(drive) == {"n1": "active", "n2": "active"}


def test_a_refused_join_says_which_reason() -> None:
    drive = Drive()
    for command in (token("old", expires_ms=NOW_MS - 1), token("gone"), token("client", role="client"), token("free", uses=-1)):
        drive.ok(command)
    drive.ok(c.RevokeToken("gone"))
    assert "has expired" in refusal(drive, add(token="old"))
    assert "was revoked" in refusal(drive, add(token="gone"))
    assert "role client" in refusal(drive, add(token="client"))
    assert "does not know the token" in refusal(drive, add(token="nowhere"))
    for number in range(5):
        drive.ok(add(f"n{number}", token="free"))
    assert drive.errno(c.RevokeToken("nowhere")) == errno.ENOENT


def test_what_no_node_or_token_looks_like_is_refused() -> None:
    drive = Drive()
    bad: list[c.Command] = [
        add(""), add("x" * 65), add("a\nb"), add(key=b"short"), add(role="king"), add(control="x" * 301), add(labels={"a" * 64: "b"}),
        token(uses=0), token(""), c.PutToken("t", "what", "node", b"v", 1, 1), c.PutToken("t", "join", "node", b"", 1, 1),
        c.PutCa("ca", "pem", "key", "odd"), c.PutCa("ca", "x" * 9_000, "key", "active"),
    ]  # fmt: skip
    for command in bad:
        assert drive.errno(command) == errno.EINVAL, command
    drive.ok(add())
    assert drive.errno(c.SetNodeState("n1", "happy")) == errno.EINVAL
    assert drive.errno(c.SetNodeState("n2", "active")) == errno.ENOENT
    drive.ok(token())
    drive.ok(token())
    assert drive.errno(c.PutToken("t", "join", "node", b"other", NOW_MS + HOUR, 1)) == errno.EEXIST


def test_rows_of_the_long_gone_go() -> None:
    drive = Drive()
    drive.ok(add("n1"))
    drive.ok(token("t1"))
    drive.ok(c.SetNodeState("n1", "removed"))
    drive.now += (REMOVED_NODE_KEPT_MS + HOUR) * 1_000_000
    drive.ok(add("n2"))
    drive.ok(token("t2", expires_ms=drive.now // 1_000_000 + HOUR))
    assert nodes(drive) == {"n2": "active"} and DEAD_TOKEN_KEPT_MS < REMOVED_NODE_KEPT_MS
    assert [row.id for row in drive.ask(n.ListTokens()).tokens] == ["t2"]


def test_nodes_are_bounded() -> None:
    drive = Drive()
    for number in range(NODES_MAX):
        drive.ok(add(f"n{number}"))
    assert drive.errno(add("more")) == errno.ENOSPC
    drive.ok(c.SetNodeState("n0", "removed"))
    drive.ok(add("more"))


def test_one_authority_signs_and_all_are_trusted() -> None:
    drive = Drive()
    assert drive.errno(c.PutCa("a", "A.", "key-a", "trusted")) == errno.EBUSY
    drive.ok(c.PutCa("a", "A.", "key-a", "active"))
    drive.ok(c.PutCa("a", "A.", "key-a", "active"))
    drive.ok(c.PutCa("b", "B.", "key-b", "trusted"))
    assert drive.ask(n.GetSigner()) == n.Signer("a", "A.", "key-a", "A.B.")
    assert drive.errno(c.PutCa("a", "", "", "trusted")) == errno.EBUSY
    drive.ok(c.PutCa("b", "", "", "active"))
    assert drive.ask(n.GetSigner()) == n.Signer("b", "B.", "key-b", "B.A.")
    assert drive.errno(c.DropCa("b")) == errno.EBUSY
    assert drive.errno(c.PutCa("b", "other", "key", "active")) == errno.EEXIST
    drive.ok(c.DropCa("a"))
    drive.ok(c.DropCa("a"))
    assert [row.id for row in drive.ask(n.ListCas()).cas] == ["b"]
    for number in range(CAS_MAX - 1):
        drive.ok(c.PutCa(f"c{number}", "C.", "key", "trusted"))
    assert drive.errno(c.PutCa("more", "C.", "key", "trusted")) == errno.ENOSPC
    drive.machine.flush()
    assert check(drive.txn) == []


def test_keys_and_verifiers_are_asked_for_by_no_connection() -> None:
    drive = Drive()
    drive.ok(c.PutCa("a", "A.", "key-a", "active"))
    drive.ok(token())
    assert drive.ask(n.GetVerifier("t")).verifier == b"hash-of-t"
    assert drive.ask_errno(n.GetVerifier("x")) == errno.ENOENT
    decode = msgspec.msgpack.Decoder(m.RequestEnvelope).decode
    for secret in (n.GetSigner(), n.GetVerifier("t")):
        with pytest.raises(msgspec.ValidationError):
            decode(msgspec.msgpack.encode([1, secret]))
    for open_to_all in (n.ListNodes(), n.ListTokens(), n.ListCas()):
        asked = decode(msgspec.msgpack.encode([1, open_to_all])).body
        shown = msgspec.msgpack.encode(drive.ask(asked))
        assert b"key-a" not in shown and b"hash-of" not in shown


def test_rows_survive_a_reload() -> None:
    drive = Drive()
    drive.ok(add())
    drive.ok(token())
    drive.reload()
    assert rows.NODE.loads(drive.txn.get(keys.node("n1")) or b"").key == KEY
    assert drive.ask(n.ListTokens()).tokens[0].created_ms >= NOW_MS


def test_no_stream_and_no_text_shows_a_secret() -> None:
    secret_row = rows.CA.dumps(rows.CaRow("a", "A.", "key-a", "active", 1))
    for number, command in enumerate((
        c.PutCa("a", "A.", "key-a", "active"),
        token(),
        c.RepairRows([], [(keys.ca("a"), secret_row), (keys.token("t"), b"hash-of-t"), (keys.node("n"), b"row")]),
    )):  # fmt: skip
        raw = c.entry_encode(c.Entry(number, 1, 1, 0, 1, 5, 6, 0, 0, 0, 0, [], command))
        assert b"key-a" in raw or b"hash-of" in raw
        shown = hidden(raw)
        assert b"key-a" not in shown and b"hash-of" not in shown
        assert type(c.entry_decode(shown).command) is type(command) and "key-a" not in repr(c.entry_decode(shown))
        if not isinstance(command, c.RepairRows):
            assert "key-a" not in repr(command) and "hash-of" not in f"{command!r}{command}"
    plain = c.entry_encode(c.Entry(9, 1, 1, 0, 1, 5, 6, 0, 0, 0, 0, [], c.Create(1, 2, b"\x95\x73\x97\x71", 0o100644, 0, 0)))
    assert hidden(plain) is plain
    for shown_row in (rows.CaRow("a", "A.", "key-a", "active", 1), n.Signer("a", "A.", "key-a", "A.")):
        assert "key-a" not in repr(shown_row)


def test_votes_are_taken_away_one_after_the_other() -> None:
    """Two removals in one moment, of three voters, would leave one that can never change the membership again."""
    drive = Drive()
    for name in ("n1", "n2", "n3"):
        drive.ok(add(name, name.encode() * 16))
    voters = [Member(name, "aa", True) for name in ("n1", "n2", "n3")]
    drive.ok(c.ChangeMembership(Membership(voters)))
    drive.ok(c.SetNodeState("n2", "removed"))
    assert drive.errno(c.SetNodeState("n3", "removed")) == errno.EBUSY
    drive.ok(c.ChangeMembership(Membership([voters[0], voters[2]], outgoing=voters)))
    assert drive.errno(c.SetNodeState("n3", "removed")) == errno.EBUSY
    drive.ok(c.ChangeMembership(Membership([voters[0], voters[2]])))
    assert drive.errno(c.SetNodeState("n3", "removed")) == errno.EBUSY
    drive.ok(c.ChangeMembership(Membership([voters[0]])))
    drive.ok(c.SetNodeState("n3", "removed"))
    assert drive.errno(c.SetNodeState("n1", "removed")) == errno.EBUSY
    assert nodes(drive) == {"n1": "active", "n2": "removed", "n3": "removed"}


def test_who_was_there_before_a_recovery_is_removed() -> None:
    """They may still run, as a cluster of the same name; here they count in no majority, no level and no rotation, and are refused."""
    drive = Drive()
    for name in ("n1", "n2", "n3"):
        drive.ok(add(name, name.encode() * 16))
    drive.ok(c.SetCarries("n2", True))
    drive.ok(c.Recover(5, "proof", "n3"))
    assert nodes(drive) == {"n1": "removed", "n2": "removed", "n3": "active"}
    assert not drive.ask(n.GetNode("n2")).nodes[0].carries
    assert "was removed" in refusal(drive, add("n1", b"n1" * 16))
    drive.machine.flush()
    assert check(drive.txn) == []


def test_the_last_node_ends_the_cluster_before_or_after_a_join_and_never_beside_it() -> None:
    drive = Drive()
    drive.ok(add("n1"))
    drive.ok(add("n2"))
    for state in ("active", "cordoned", "draining"):
        drive.ok(c.SetNodeState("n2", state))
        assert drive.errno(c.SetNodeState("n1", "ending")) == errno.EBUSY, "the other one has joined before"
    drive.ok(c.SetNodeState("n2", "removed"))
    drive.ok(c.SetNodeState("n1", "ending"))
    assert "being ended by its last node, name-n1" in refusal(drive, add("n3"))
    drive.ok(add("n1"))  # it is there, and asks once more
    drive.ok(c.SetNodeState("n1", "active"))
    drive.ok(add("n3"))
    assert nodes(drive) == {"n1": "active", "n2": "removed", "n3": "active"}


def test_a_node_ends_no_cluster_that_acts_by_the_rules_of_before() -> None:
    drive = Drive(level=DELEGATION - 1)
    drive.ok(add("n1"))
    assert drive.errno(c.SetNodeState("n1", "ending")) == errno.EINVAL and nodes(drive) == {"n1": "active"}
