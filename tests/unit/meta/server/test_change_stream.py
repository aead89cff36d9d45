"""The change stream: pages, gaps, long polls, and what compaction keeps for registered readers."""

from __future__ import annotations

import threading
import time

import pytest

from awsomefsd.base.errors import Corrupt
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.server import change_stream
from tests.rigs.metadata_service import Clock, Host, Wire, create, host


def raw_entry(index: int) -> bytes:
    return c.entry_encode(c.Entry(index, 1, 1, 0, 0, index, 0, 0, 0, 0, 0, [], c.Reap(1)))


def test_a_page_is_checked_against_the_cursor():
    page = m.Changes([raw_entry(5), raw_entry(6)], 1, 9)
    assert [entry.index for entry in change_stream.changes(page, 4)] == [5, 6]
    with pytest.raises(Corrupt, match="entry 5 where 4 belongs"):
        change_stream.changes(page, 3)
    with pytest.raises(Corrupt):
        change_stream.changes(m.Changes([b"\xc1"], 1, 9), 4)
    with pytest.raises(change_stream.StreamGap) as gap:
        change_stream.changes(m.Changes([], 12, 30), 10)
    assert (gap.value.cursor, gap.value.first_kept) == (10, 12)
    assert change_stream.changes(m.Changes([], 12, 11), 11) == []
    with pytest.raises(change_stream.StreamGap, match="the newest is 9"):
        change_stream.changes(m.Changes([], 1, 9), 10)


def test_follow_waits_for_the_next_entry_and_no_longer_than_asked(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path, mount=0)
        reply = wire.ask(m.Follow(3, 10, 0))
        assert reply == m.Changes([], 1, 3)
        assert wire.ask(m.Follow(3, 10, 30)) == m.Changes([], 1, 3)
        wire.send(m.Follow(3, 10, 30_000))
        node.service.propose(c.RegisterReader("r", 0), 60)
        (answer,) = wire.receive()
        assert [entry.index for entry in change_stream.changes(answer.reply, 3)] == [4]
        assert node.figures()["followers"] == 0
        wire.close()


def fill(wire: Wire, opened: m.SessionOpened, first: int, count: int) -> None:
    """Entries of 8 KiB."""
    acks = list(range(first - 400, first))
    for number in range(first, first + count):
        command = c.SetXattr(1, 1, b"user.x", bytes(8_000))
        reply = wire.ask(m.Propose(number, opened.session, opened.epoch, acks, command))
        assert not isinstance(reply, m.Failed), reply
        acks = []


def first_index_beyond(node: Host, index: int) -> int:
    """The journal's first entry, once it is beyond `index`: the store is written by a thread of its own, behind the answers."""
    end = time.monotonic() + 120
    while (first := node.figures()["first_index"]) <= index:
        assert time.monotonic() < end, f"the journal begins with entry {first}"
        time.sleep(0.01)
    return int(first)


def test_compaction_keeps_what_a_registered_reader_has_not_passed(tmp_path):
    options = {"commit_entries": 20, "commit_ms": 60_000, "journal_file_bytes": 4 << 20}
    with host(tmp_path, boot_ns=Clock(), replica_options=options) as node:  # the session lives, however long this takes
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        node.service.propose(c.RegisterReader("reader", 4), 60)
        fill(wire, opened, 1_000, 1_200)
        assert node.figures()["first_index"] == 1 and node.figures()["journal_bytes"] >= 12 << 20
        assert [entry.index for entry in node.log(4)][:3] == [5, 6, 7]
        node.service.propose(c.AdvanceReader("reader", 600), 60)
        fill(wire, opened, 3_000, 40)
        kept = first_index_beyond(node, 1)
        assert kept <= 601
        assert node.log(600)[0].index == 601
        node.crash()
        wire.close()
        node.start()
        assert node.figures()["first_index"] == kept
        with pytest.raises(change_stream.StreamGap):
            change_stream.changes(node.service.query(m.Follow(4, 10, 0)), 4)
        node.service.propose(c.RemoveReader("reader"), 60)
        wire = Wire(node.socket_path)
        fill(wire, opened, 4_000, 40)
        first_index_beyond(node, 601)
        wire.close()


def test_entries_are_followed_while_they_are_made(tmp_path):
    with host(tmp_path) as node:
        wire, reader = Wire(node.socket_path), Wire(node.socket_path, mount=0)
        opened = wire.open_session()
        names: list[bytes] = []

        def follow() -> None:
            cursor = 4
            while len(names) < 100:
                entries = change_stream.changes(reader.ask(m.Follow(cursor, 7, 10_000)), cursor)
                names.extend(entry.command.name for entry in entries)
                cursor += len(entries)

        thread = threading.Thread(target=follow)
        thread.start()
        wire.send(*(create(opened, 100 + number, b"%03d" % number) for number in range(100)))
        wire.receive(100)
        thread.join(60)
        assert names == [b"%03d" % number for number in range(100)]
        wire.close()
        reader.close()
