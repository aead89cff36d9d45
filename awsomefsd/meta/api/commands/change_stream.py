"""Commands about registered readers of the change stream."""

from __future__ import annotations

from awsomefsd.meta.api.commands.base import Command


class RegisterReader(Command, tag=50):
    """A named reader of the change stream; the log is kept from its cursor on.  Idempotent (keeps an existing cursor)."""

    name: str
    cursor: int


class AdvanceReader(Command, tag=51):
    name: str
    cursor: int


class RemoveReader(Command, tag=52):
    name: str
