"""The redundancy of a volume in a pool is read as people write it: replicas=N[,min=M][,ack=all|quorum][,spread=host|device][,class=C].

Pure.  What is not possible is refused with what is.
"""

from __future__ import annotations

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.limits import COPIES_MAX
from awsomefsd.base.types import DEVICE_CLASSES, SPREAD_DEVICE, SPREAD_HOST, Redundancy

_SPREADS = {"host": SPREAD_HOST, "device": SPREAD_DEVICE}
_WORDS = ("replicas", "min", "ack", "spread", "class")
HOW = "write it like replicas=3 or replicas=3,min=2,ack=quorum,spread=device,class=ssd"


def parse_redundancy(text: str) -> Redundancy:
    """Returns what a text asks for.  Raises ConfigError, whose message says what is possible."""
    words = _words(text)
    if "ec" in words:
        raise ConfigError(f"{text!r}: erasure coding (ec=) is not built; replicas=1 to replicas={COPIES_MAX} are possible")
    if unknown := [word for word in words if word not in _WORDS]:
        raise ConfigError(f"{text!r}: {unknown[0]!r} says nothing about redundancy; {HOW}")
    if "replicas" not in words:
        raise ConfigError(f"{text!r} does not say how many replicas; {HOW}")
    copies = _number(text, "replicas", words["replicas"], COPIES_MAX)
    least = _number(text, "min", words["min"], copies) if "min" in words else usual_min(copies)
    ack = _one_of(text, "ack", words.get("ack", "all"), ("all", "quorum"))
    spread = _one_of(text, "spread", words.get("spread", "host"), tuple(_SPREADS))
    device_class = _one_of(text, "class", words["class"], DEVICE_CLASSES) if "class" in words else ""
    return Redundancy(copies, least, spread=_SPREADS[spread], device_class=device_class, quorum=ack == "quorum")


def usual_min(copies: int) -> int:
    """Returns with how many of so many mirrors a write is acknowledged where the others fail: a pair goes on alone, more do not."""
    return 1 if copies <= 2 else copies - 1


def redundancy_text(want: Redundancy) -> str:
    """Returns the shortest text that asks for it."""
    parts = [f"replicas={want.copies}"]
    if want.min_copies != usual_min(want.copies):
        parts.append(f"min={want.min_copies}")
    if want.quorum:
        parts.append("ack=quorum")
    if want.spread == SPREAD_DEVICE:
        parts.append("spread=device")
    if want.device_class:
        parts.append(f"class={want.device_class}")
    return ",".join(parts)


def _words(text: str) -> dict[str, str]:
    words: dict[str, str] = {}
    for part in text.split(","):
        word, equals, value = part.strip().partition("=")
        if not word or not equals or not value:
            raise ConfigError(f"{text!r} is no redundancy: {part!r} has no value; {HOW}")
        if word in words:
            raise ConfigError(f"{text!r} says {word!r} twice")
        words[word] = value
    return words


def _number(text: str, word: str, value: str, most: int) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 3 and 1 <= int(value) <= most):
        why = f"min is at most the number of replicas, so 1 to {most}" if word == "min" else f"replicas=1 to replicas={most} are possible"
        raise ConfigError(f"{text!r}: {word}={value} is not possible; {why}")
    return int(value)


def _one_of(text: str, word: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"{text!r}: {word}={value} is not possible; it is one of {', '.join(known)}")
    return value
