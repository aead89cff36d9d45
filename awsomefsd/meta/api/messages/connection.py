"""The greeting, proposals, and the replies that any request may get."""

from __future__ import annotations

from awsomefsd.meta.api.commands import AnyCommand
from awsomefsd.meta.api.messages.base import Message

PROTOCOL_VERSION = 1

PROTOCOL_OLDEST = 1  # that is still spoken


class Hello(Message, tag=1):
    """First on every connection.  Answered by Welcome, or Failed and the connection closed."""

    version: int
    mount: int  # 0: a client without a mount (daemon, tools)
    features: int = 0
    connection: int = 0  # counts this client's connections: nothing more is read from earlier ones of the mount (0: not counted)
    client: int = 0  # random, of the client that counts; an earlier connection of the same one may be greeted later.  0: of an older build


class Propose(Message, tag=2):
    """Answered when the command is committed and applied, or at once with the stored result of the same request id."""

    unique: int
    session: int
    epoch: int
    acks: list[int]
    command: AnyCommand


class GetStatus(Message, tag=27):
    """`of_leader` True: of the cluster's leader; else of the service that is asked.  Builds from before the field leave it out."""

    of_leader: bool = False


class Done(Message, tag=1):
    pass


class Failed(Message, tag=2):
    """`errno` of errno.h; `detail` for people."""

    errno: int
    detail: str = ""
    retry: bool = False


class Welcome(Message, tag=3):
    version: int
    cluster_uuid: str
    term: int


class Status(Message, tag=22):
    """Figures by name, for `status` and metrics."""

    figures: dict[str, int | float | str]


class NotLeader(Message, tag=50):
    """Ask `node` at `address` (both "" while nobody is known to lead), with the same ids.  Answers any request, Hello too."""

    node: str
    address: str
