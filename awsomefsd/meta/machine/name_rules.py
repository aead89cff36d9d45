"""The rules of names, attributes and extended attributes by command: what a mount may decide itself, and the leader applies as records.

There is one table, so that a command which a holder decides (held.py) is one that the leader takes in a batch (records.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Reply
from awsomefsd.meta.machine import attributes, namespace, renames, xattrs
from awsomefsd.meta.state.rows_cache import State

Rules = dict[type[c.Command], Callable[[State, c.Entry, Any], Reply]]

NAME_RULES: Rules = {
    c.Create: namespace.create,
    c.Tmpfile: namespace.tmpfile,
    c.Link: namespace.link,
    c.Unlink: namespace.unlink,
    c.Rmdir: namespace.rmdir,
    c.Rename: renames.rename,
    c.SetAttr: attributes.set_attr,
    c.SetXattr: xattrs.set_xattr,
    c.RemoveXattr: xattrs.remove_xattr,
    c.ReleaseOrphan: namespace.release_orphan,
}
