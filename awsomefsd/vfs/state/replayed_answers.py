"""The answer to a repeated request is brought up to now where it speaks of inodes.

A successor that sends a change again gets the first result of it, with the attributes of that moment.  They lack what was dirty then and
has been flushed since: of a file that was written and then linked, or given another mode, the size is too small.  The kernel takes the size
of such a reply as the file's own, and write(2) at the end, which it places itself, would overwrite what an earlier one was acknowledged.
So each inode of the answer is asked about before the answer is used.  That shows no more than the change and what came before it: while
link(2) and setattr wait the kernel holds the inode's lock, so nobody writes.

An inode that is gone is left as it was told.  The `attr` of an answer is what goes to the kernel, so it is asked about last: nothing
comes between that and its use.

Rejected: no time to live for such replies (an open descriptor appends at the size that was told last, however old); a service that puts
present attributes into kept results (they are part of the replicated state, and say what the entry did).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import Steps, Wait
from awsomefsd.meta.api.messages import Found, GetAttr


def as_now(ask: Callable[[Any], Wait], volume: int, reply: Any) -> Steps:
    """`reply` with the attributes that its inodes have now."""
    now: dict[str, Attr] = {}
    for name in sorted(reply.__struct_fields__, key=lambda name: bool(name == "attr")):
        told = getattr(reply, name)
        if type(told) is not Attr:
            continue
        try:
            found: Found = yield ask(GetAttr(volume, told.ino))
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
        else:
            now[name] = found.attr
    return replace(reply, **now) if now else reply
