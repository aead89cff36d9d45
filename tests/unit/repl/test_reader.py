"""The reader of the change stream and its cursor file, over restarts of both sides."""

from __future__ import annotations

import random

import pytest

from awsomefsd.base.errors import Corrupt, Refused
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.server.change_stream import StreamGap
from awsomefsd.repl.cursor import CursorFile
from awsomefsd.repl.reader import ChangeReader
from tests.rigs.metadata_service import CLUSTER, Wire, create, host


def test_the_cursor_file_is_the_old_or_the_new_one(tmp_path):
    cursors = CursorFile(tmp_path / "cursor", CLUSTER, "audit")
    assert cursors.load() is None
    for index in (1, 7, 1 << 50):
        cursors.save(index)
        assert CursorFile(tmp_path / "cursor", CLUSTER, "audit").load() == index
    (tmp_path / "cursor.new").write_bytes(b"torn")
    assert cursors.load() == 1 << 50
    with pytest.raises(Refused):
        CursorFile(tmp_path / "cursor", CLUSTER, "other").load()
    with pytest.raises(Refused):
        CursorFile(tmp_path / "cursor", "another cluster", "audit").load()


def test_damaged_cursor_files(tmp_path, seed):
    rng = random.Random(seed)
    cursors = CursorFile(tmp_path / "cursor", CLUSTER, "audit")
    cursors.save(1234)
    good = (tmp_path / "cursor").read_bytes()
    for _ in range(300):
        raw = bytearray(good)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        (tmp_path / "cursor").write_bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.2 else raw)
        with pytest.raises(Corrupt):
            cursors.load()


def test_every_change_once_over_restarts_of_reader_and_service(tmp_path):
    with host(tmp_path, replica_options={"commit_entries": 10}) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        client = MetaClient(node.socket_path, 0)
        client.start()
        cursors = CursorFile(tmp_path / "cursor", CLUSTER, "audit")
        names: list[bytes] = []
        unique = 100
        for _ in range(5):
            reader = ChangeReader(client, "audit", cursors, release_entries=15)
            reader.open()
            for _ in range(20):
                assert wire.ask(create(opened, unique, b"%d" % unique)).created
                unique += 1
            while len(names) < unique - 100:
                entries = reader.read(wait_ms=5_000, count=8)
                names += [entry.command.name for entry in entries if isinstance(entry.command, c.Create)]
                reader.done(reader.cursor)
            node.crash()
            wire.close()
            node.start()
            wire = Wire(node.socket_path)
        assert names == [b"%d" % number for number in range(100, unique)]
        assert any(isinstance(entry.command, c.AdvanceReader) for entry in node.log())
        reader.remove()
        client.close()
        wire.close()


def test_a_reader_that_was_not_registered_learns_of_the_gap(tmp_path):
    with host(tmp_path, replica_options={"commit_entries": 20, "journal_file_bytes": 4 << 20}) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        client = MetaClient(node.socket_path, 0)
        client.start()
        for number in range(700):
            command = c.SetXattr(1, 1, b"user.x", bytes(8_000))
            wire.ask(m.Propose(1_000 + number, opened.session, opened.epoch, [999 + number], command))
        reader = ChangeReader(client, "late", CursorFile(tmp_path / "cursor", CLUSTER, "late"))
        reader.open()
        with pytest.raises(StreamGap) as gap:
            reader.read(0)
        assert gap.value.first_kept > 1
        resynced = ChangeReader(client, "resynced", CursorFile(tmp_path / "cursor2", CLUSTER, "resynced"))
        resynced.open(start=gap.value.first_kept - 1)
        assert resynced.read(0)[0].index == gap.value.first_kept
        client.close()
        wire.close()
