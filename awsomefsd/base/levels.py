"""The level of a cluster says what its nodes, which may run different builds, may do (decision 55).

Every command of the log has a level: that of the first build that knows it.  The cluster acts at one level, a number in its state; a
command above it is refused before it gets into the log, so that a node of an older build never meets one that it cannot read.  Builds are
exchanged one node at a time, and when all nodes know the next level, `awsomefsd upgrade finalize` raises the cluster's.  A level never goes
back, so until then, and only until then, every node may go back to the older build.

Wire protocols are agreed on for each connection (`agreed`), so a new build speaks with an old one in words that both know.

A level is also what the rules of the machine go by (rule_levels.py).  A rule that does something else with a command that older builds know
(another change of the state, another reply) asks `state.acts_at` for the level that brought it, and below it does what they do: voters
of two builds that apply one log differently have two states.  The answer is a number in the state, so every voter gets the same one at the
same entry.

AWSOMEFSD_LEVEL pins this build to a lower level: it then behaves like an older one, and refuses what that could not read.

A level above LEVEL is *unfinished*: its rules and formats are in this build, and may still change.  No node announces it, so no cluster is
raised to it, unless the process was started with AWSOMEFSD_TEST_UNFINISHED=1, which tests do on clusters of their own.
"""

from __future__ import annotations

import os

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.rule_levels import DELEGATION, POOLS

LEVEL = DELEGATION  # the highest that this build announces
UNFINISHED = POOLS  # the highest that it has rules for
# 2: volumes are claimed by nodes (Kubernetes); devices change; shared mounts write through

VARIABLE = "AWSOMEFSD_LEVEL"
UNFINISHED_VARIABLE = "AWSOMEFSD_TEST_UNFINISHED"


def highest() -> int:
    """Returns the highest level that this process may announce: LEVEL, and in tests of what is unfinished UNFINISHED."""
    return UNFINISHED if os.environ.get(UNFINISHED_VARIABLE) == "1" else LEVEL


def supported() -> int:
    """Returns the highest level that this process announces.  Raises ConfigError for an AWSOMEFSD_LEVEL that is none of this build."""
    text, known = os.environ.get(VARIABLE, ""), highest()
    if not text:
        return known
    if not text.isdecimal() or not 1 <= int(text) <= known:
        raise ConfigError(f"{VARIABLE}={text!r} is not a level of this build (1 to {known}); correct or unset it")
    return int(text)


def too_low(needed: int, level: int) -> str:
    """Returns the words of a refusal: something needs a level that the cluster does not act at yet."""
    return (
        f"this needs level {needed}, and the cluster acts at level {level}; "
        "upgrade the nodes that `awsomefsd upgrade status` names, then `awsomefsd upgrade finalize`"
    )


def agreed(theirs: int, oldest: int, newest: int) -> int:
    """Returns the version of a wire protocol that two sides speak: the newest that both know; 0 if there is none.

    The side that greets names its newest version; the side that answers names the agreed one; the first checks that it still knows that.
    """
    version = min(theirs, newest)
    return version if version >= oldest else 0
