"""A request that the leader handles, and who asked for it.  Pure."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from awsomefsd.meta.api.messages import Reply

Said = TypeVar("Said")


class Origin(Protocol):
    """Who asked: a connection, or a thread of this process."""

    @property
    def mount(self) -> int:
        """The number of the mount or of the node's daemon; 0 for a client without one."""

    def answer(self, call: int, reply: Reply) -> None:
        """Takes the reply to request number `call`, at most one a call.  On the metadata thread; it neither blocks nor raises."""


class Silent:
    """An origin that waits for no answer: the leader proposes on its own behalf."""

    def __init__(self, mount: int = 0) -> None:
        self.mount = mount

    def answer(self, call: int, reply: Reply) -> None:
        pass


class Request(NamedTuple, Generic[Said]):
    """One request from its arrival to its answer.

    `call` is the number under which `origin` expects the answer.  `size` is the encoded length of the request in bytes; 0 for what the
    leader asks itself.
    """

    origin: Origin
    call: int
    body: Said
    size: int = 0

    def answer(self, reply: Reply) -> None:
        """Answers `origin`; at most once."""
        self.origin.answer(self.call, reply)


AnyRequest = Request[Any]
