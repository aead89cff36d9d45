"""Commands about stores of objects (tier/); meta/machine/stores.py has their rules.

`secret` is veiled (tier/store_secret.py), and nothing in meta/ looks into it.  No stream, dump or log shows it (meta/state/redaction.py).
"""

from __future__ import annotations

from typing import ClassVar

from awsomefsd.base.rule_levels import STORES
from awsomefsd.base.types import StoreOptions
from awsomefsd.meta.api.commands.base import Command


class StoreCommand(Command):
    """Base of the commands of this file.  No cluster acts at their level yet (base/levels.py)."""

    since: ClassVar[int] = STORES


class AddStore(StoreCommand, tag=210):
    """A store becomes known, with the era that begins in it; nothing is there yet.  Answered by Made(number).

    EEXIST where another one has the name, or the URL at the same endpoint.
    """

    name: str
    url: str
    era: str
    options: StoreOptions
    secret: bytes = b""

    def __repr__(self) -> str:
        return f"AddStore({self.name!r}, {self.url!r}, …)"


class StoreReady(StoreCommand, tag=211):
    """Marker and era `era_number` of a store were read back: it may be used.

    ESTALE where no era was named since a recovery (BeginEra), and unless entry `changed` was the last that changed it: they may be
    elsewhere than where it is looked for now.
    """

    store: int
    changed: int
    era_number: int


class SetStore(StoreCommand, tag=212):
    """Other options of a store, and another secret (None: as it is).  ESTALE unless entry `changed` was the last that changed it."""

    store: int
    changed: int
    options: StoreOptions
    secret: bytes | None = None

    def __repr__(self) -> str:
        return f"SetStore({self.store}, {self.changed}, …)"


class BeginEra(StoreCommand, tag=214):
    """The era after a recovery is named; then it is put, and StoreReady says so.

    ESTALE for a store that needs none, or has one, and unless entry `changed` was the last that changed it.
    """

    store: int
    changed: int
    era: str


class DetachStore(StoreCommand, tag=213):
    """The cluster forgets a store, and its secret.  What lies there stays."""

    store: int
