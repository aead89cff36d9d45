"""A mount that decides names by itself, without a kernel, and what of its records is where."""

from __future__ import annotations

import json
import threading
from typing import Any

from awsomefsd.base.types import ROOT_INO
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.rigs.metadata_service import Wire
from tests.rigs.mount_without_kernel import VOLUME, After, Gate, Rig, until


class Delegated(Rig):
    delegated = True


class Shipping:
    """Lets batches of records wait."""

    def __init__(self, r: Rig) -> None:
        self._r = r
        self.held: list[After] = []
        self._holding = False
        self._lock = threading.Lock()  # of both: the shipper may be about to send a batch when it is let go
        self._gate = Gate(r.worker.client)
        r.worker.names.shipper._metadata = self._gate

    def hold(self) -> None:
        client = self._r.worker.client

        def on_propose(command: Any, unique: int) -> Any:
            if type(command) is not c.Apply:
                return None
            batch = After(client.propose(command, unique))
            with self._lock:
                if self._holding:
                    self.held.append(batch)
                else:
                    batch.release()
            return batch

        self._holding = True
        self._gate.on_propose = on_propose

    def go(self) -> None:
        self._gate.on_propose = None
        with self._lock:
            self._holding = False
        for held in self.held:
            held.release()
        self.held.clear()


def at_leader(r: Rig, ino: int = ROOT_INO) -> dict[bytes, int]:
    assert r.host.service is not None
    reply = r.host.service.query(m.ReadDir(VOLUME, ino, 0, 512, False))
    assert isinstance(reply, m.Entries), reply
    return {entry.name: entry.ino for entry in reply.entries}


def shipped(r: Rig) -> None:
    until(lambda: r.worker.names.synced() is None)


def aside(r: Rig) -> list[dict[str, Any]]:
    (folder,) = (r.directory / "conflicts").glob("*-names")
    return [json.loads(line) for line in (folder / "records").read_text().splitlines()]


def replace_session(r: Rig, before: int = 0) -> None:
    """Returns when the mount goes on under another session; its own was ended by the leader.

    `before`: the session that was ended, of a shared mount, which may hear of it by itself and have another one by now.
    """
    before = before or r.worker.memory.control.state.session
    r.worker.client._keeper.doubt()
    until(lambda: r.worker.memory.control.state.session != before and not r.worker.sessions._busy.locked())


def others_change(r: Rig) -> int:
    """Another mount has the volume, after the session of this one was ended; returns the inode of its directory b"theirs"."""
    wire = Wire(r.host.socket_path, 99)
    opened = wire.open_session(99)
    made = wire.ask(m.Propose(100, opened.session, opened.epoch, [], c.Create(VOLUME, 1, b"theirs", 0o040755, 0, 0)))
    assert isinstance(made, m.Found)
    wire.ask(m.Propose(2, opened.session, opened.epoch, [], c.EndSession(opened.session, opened.epoch, True)))
    wire.close()
    return made.attr.ino
