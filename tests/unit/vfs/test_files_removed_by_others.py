"""Acknowledged data of a file that another mount has replaced after the session had ended is put aside, also by a successor."""

from __future__ import annotations

from pathlib import Path

import pytest

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.worker import takeover as takeover_module
from tests.rigs.delegated_mount import Delegated, replace_session, shipped
from tests.rigs.metadata_service import Wire
from tests.rigs.mount_without_kernel import VOLUME, Rig, rig, until


def others_replace(r: Rig) -> None:
    """Another mount replaces f as editors do: a new file, renamed over it."""
    wire = Wire(r.host.socket_path, 99)
    o = wire.open_session(99)
    made, renamed = c.Create(VOLUME, 1, b"f.new", 0o100644, 0, 0), c.Rename(VOLUME, 1, b"f.new", 1, b"f", 0)
    for number, command in enumerate((made, renamed, c.EndSession(o.session, o.epoch, True))):
        reply = wire.ask(m.Propose(100 + number, o.session, o.epoch, [], command))
        assert not isinstance(reply, m.Failed), (command, reply)
    wire.close()


@pytest.mark.parametrize("kind", [Rig, Delegated])
@pytest.mark.parametrize("how", ["the worker lives", "the worker died too"])
def test_data_of_a_file_that_others_replaced_meanwhile(tmp_path: Path, kind, how: str) -> None:
    with rig(tmp_path, made_by=kind) as r:
        ino, fh = r.create(b"f")
        r.flush()
        if kind is Delegated:
            shipped(r)
        r.write(ino, fh, 0, b"acknowledged")
        before = r.worker.memory.control.state.session
        if "died" in how:
            r.kill()
        r.end_session()
        others_replace(r)
        if "died" in how:
            r.start()
        else:
            replace_session(r, before)
        area = r.directory / "conflicts"
        kept = b"".join(f.read_bytes() for f in sorted(area.rglob("*")) if f.is_file()) if area.exists() else b""
        assert b"acknowledged" in kept


@pytest.mark.parametrize("kind", [Rig, Delegated])
def test_the_session_ends_while_a_successor_looks_what_is_there(tmp_path: Path, kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opened the session while that was good, was cut off then, and its questions are answered when others have replaced the file."""
    with rig(tmp_path, made_by=kind) as r:
        ino, fh = r.create(b"f")
        r.flush()
        if kind is Delegated:
            shipped(r)
        r.write(ino, fh, 0, b"acknowledged")
        r.kill()

        def cut_off(name: str) -> None:
            if name == "takeover.records.found":
                r.end_session()
                others_replace(r)

        monkeypatch.setattr(takeover_module, "hit", cut_off)
        r.start()
        r.worker.client._keeper.doubt()
        until(lambda: r.worker.memory.control.state.session == r.worker.client.session and not r.worker.sessions._busy.locked())
        kept = b"".join(f.read_bytes() for f in sorted((r.directory / "conflicts").rglob("*")) if f.is_file())
        assert b"acknowledged" in kept
