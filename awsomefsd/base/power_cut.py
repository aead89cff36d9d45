"""One sentence says what a power cut may take from a mount or a volume: `mount`, `status -v` and `volume` print it.  Pure.

A worker knows whether it decides names, and reports why if it does not (`Why`); the daemon makes the sentence of that.  Until the first
report of a worker the options of the mount and the volume say what it is going to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

from awsomefsd.base.types import NAMES_DELEGATED, NAMES_WORDS

DECIDES, WHY = "names_delegated", "names_durable_why"  # figures of a worker
UNKNOWN = "what a power cut may take is not known: no leader answers"

_SYNCS = "fsync, synchronous write, flush or unmount"
_NOTHING = "a power cut takes nothing that was answered"
_DURABLE = f"a power cut may take bytes that no {_SYNCS} has made durable, and no change of a name or attribute that was answered"
_DELEGATED = (
    f"a power cut may take bytes and the newest changes of names and attributes that no {_SYNCS} has made durable: "
    "of changes some 0.1 s, up to 7 s while no leader answers, and never one without those after it"
)


class Why(IntEnum):
    """Why a mount does not decide names (a figure of its worker: numbers keep their meaning)."""

    DECIDES = 0
    VOLUME = 1
    SYNC = 2
    LEVEL = 3
    KEEPER = 4
    DIRTY = 5
    REFUSED = 6


_REASONS: dict[int, str] = {
    Why.VOLUME: "it began when the volume had names=durable; mount it again",
    Why.SYNC: "it has the option sync or dirsync, or began with it; without it, mount it again",
    Why.LEVEL: "its program is of an older build than the level of the cluster; the next worker looks again",
    Why.KEEPER: "it has no keeper, or one of an older build; mount it again",
    Why.DIRTY: "data was dirty in its memory when its worker began; the next worker looks again",
    Why.REFUSED: "changes were refused or put aside (`awsomefsd status`); mount it again",
}
_SHARED = "it is shared, without the option names=leases"
_OLDER = "its program or its memory is of an older build; mount it again"


def of_volume(names: str) -> str:
    """Returns the sentence of a volume whose names are this word (NAMES_WORDS); of an exclusive mount without sync options, that is."""
    return _DELEGATED if names == NAMES_WORDS[NAMES_DELEGATED] else _DURABLE


def of_mount(names: str, options: Sequence[str], figures: Mapping[str, int]) -> str:
    """Returns the sentence of a mount of a volume with `names` (a word; "" if it is not known).

    `figures` are the last ones of its worker; none before its first report.
    """
    if not names:
        return UNKNOWN
    if figures.get(DECIDES) and not figures.get(WHY):
        again = "" if names == NAMES_WORDS[NAMES_DELEGATED] else "; it began when the volume had names=delegated: mount it again"
        return f"{_DELEGATED} (names=delegated{again})"
    sync = [word for word in options if word in ("sync", "async")][-1:] == ["sync"]
    said = _NOTHING if sync else _DURABLE
    if names != NAMES_WORDS[NAMES_DELEGATED]:
        return f"{said} (names=durable)"
    why = _why(options, figures)
    return f"{said} (the volume has names=delegated, but this mount decides none: {why})" if why else f"{_DELEGATED} (names=delegated)"


def _why(options: Sequence[str], figures: Mapping[str, int]) -> str:
    if WHY in figures:
        return _REASONS.get(figures[WHY], "of a reason that this daemon does not know")
    under_leases = [word for word in options if word.startswith("names=")][-1:] == ["names=leases"]
    if "shared" in options and not under_leases:
        return _SHARED
    if figures:
        return _OLDER
    return _REASONS[Why.SYNC] if {"sync", "dirsync"} & {*options} else ""
