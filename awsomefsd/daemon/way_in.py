"""The way of a node into a cluster, as the daemon that waits for it knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

WAITS = "waiting: this node is in no cluster; make one with awsomefsd init, join one with awsomefsd join, or set a token (AWSOMEFSD_TOKEN)"

Words = Callable[[], list[str]]  # returns the state of the waiting, line by line; any thread may call it


class Work(NamedTuple):
    """The way of this node into a cluster; `words` describes the state meanwhile.

    `run` ends when the node is in, or raises an Error.  Without a token it ends at once: people then use `awsomefsd init` or `join`.
    """

    run: Callable[[], Any]
    words: Words
