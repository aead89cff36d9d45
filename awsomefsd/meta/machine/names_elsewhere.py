"""A change of names and attributes is refused for now while another session holds what it touches, and may have decided something of it.

The leader recalls that lease first (meta/server/leases/).  But a lease may be granted by an entry that is on its way while it looks; so the
same is said here once more, where the order is certain.  Only where names are delegated: elsewhere no lease holds back a name, and a change
of a file's bytes says so for itself (write_leases.check_may_change).
"""

from __future__ import annotations

import errno
from typing import Any

from awsomefsd.base.types import NAMES_DELEGATED
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.machine import record_checks, write_leases
from awsomefsd.meta.machine.name_rules import NAME_RULES
from awsomefsd.meta.machine.namespace import find
from awsomefsd.meta.state.lookups import RetryLater
from awsomefsd.meta.state.rows_cache import State


def check(state: State, entry: c.Entry) -> None:
    """Raises RetryLater for a change of names by an entry of its own that meets the lease of another session."""
    command: Any = entry.command
    if type(command) not in NAME_RULES or isinstance(command, c.ReleaseOrphan):  # that ends a pin of the session's own
        return
    volume = state.volume(command.volume)
    if volume is None or volume.names != NAMES_DELEGATED or not volume.sharers:
        return
    inos = {getattr(command, field, 0) for field in ("parent", "new_parent", "ino")}
    if isinstance(command, (c.Unlink, c.Rmdir, c.Rename)):  # of others the leader does not recall what is there: it is not changed
        for parent, name in record_checks.names_of(command):
            dentry = find(state, volume.volume, parent, name)
            inos.add(0 if dentry is None else dentry.ino)
    for ino in sorted(inos - {0}):
        holder = write_leases.holder_of(state, volume.volume, ino)
        if holder not in (0, entry.session):
            raise RetryLater(errno.EAGAIN, f"session {holder} holds inode {ino}")
