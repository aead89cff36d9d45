"""The commands of a page, as somebody reads them: blocks marked `console`, a prompt before each command, below it what it shows.

A prompt is `#` or `$`, with the word before it that says where: `first#`, `others#`, `all#`.  Lines without a prompt are what the command
above shows; below `cat > FILE` they are what is typed into it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from buildtools.say import CHECKOUT

_PROMPT = re.compile(r"(?P<where>[a-z]*)[#$] +(?P<text>.*)")
_TYPED_INTO = re.compile(r"cat > \S+$")
# What is another thing at each run.  The pieces are tried in this order; what none of them takes is compared as it stands.
_DIFFERS = {
    r"…": r".*",
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}": r"[0-9a-f-]{36}",
    r"\d[\d.]* (?:[KMGT]iB|B)\b": r"\d[\d.]* (?:[KMGT]i)?B",
    r"\d[\d.]* (?:ms|s|min|h)\b(?: \d+ (?:s|min)\b)?": r"\d[\d.]* (?:ms|s|min|h)(?: \d+ (?:s|min))?",
    r"\b\d+[smhd]\b": r"\d+[smhd]",
    r"\bn[1-3]\b": r"n[1-3]",
    r"\b(?:leader|follower|voter)\b": r"(?:leader|follower|voter)",
    r"\b(?=[a-f]*\d)[0-9a-f]{4,}\b": r"[0-9a-f]+",
    r"/dev/loop\d+": r"/dev/loop\d+",
    r"\d[\d,.]*\d|\d": r"\d[\d,.]*",
    r"\s+": r"\s+",
}
_PIECES = re.compile("|".join(f"(?P<p{number}>{piece})" for number, piece in enumerate(_DIFFERS)))
_ALLOWED = list(_DIFFERS.values())
_RULE = re.compile("─+")
_STATUS = re.compile(r"exit status (\d)")


@dataclass
class Command:
    page: str
    heading: str
    where: str  # the word before the prompt, "" for none
    text: str
    typed: list[str] = field(default_factory=list)  # into the command, when it runs
    shown: list[str] = field(default_factory=list)  # by the command, as the page has it

    @property
    def plain(self) -> str:
        """What is typed, without the remark behind it."""
        return re.split(r"\s+# ", self.text)[0]

    @property
    def status(self) -> int:
        """The exit status that the page promises."""
        said = _STATUS.search(self.text)
        return int(said[1]) if said else 0

    def __str__(self) -> str:
        return f"{self.page}, {self.heading!r}: {self.text}"


def commands(name: str) -> list[Command]:
    """Returns the commands of a page, from first to last."""
    found: list[Command] = []
    heading, fence = "", ""
    for line in (CHECKOUT / name).read_text().splitlines():
        if line.startswith("```"):
            fence = "" if fence else line
        elif not fence and line.startswith("#"):
            heading = line.lstrip("# ")
        elif fence == "```console":
            _add(found, line, Command(name, heading, "", ""))
    return found


def _add(found: list[Command], line: str, made: Command) -> None:
    prompted = _PROMPT.fullmatch(line)
    if prompted:
        made.where, made.text = prompted["where"], prompted["text"].strip()
        found.append(made)
    elif _TYPED_INTO.match(found[-1].text):
        found[-1].typed.append(line)
    elif line.strip() and not _RULE.fullmatch(line.strip()):
        found[-1].shown.append(line)


def pattern(shown: str) -> re.Pattern[str]:
    """Returns what a line has to look like that shows what the page shows, at another time and on another machine."""
    parts, at = [], 0
    text = shown.strip()
    for piece in _PIECES.finditer(text):
        parts += [re.escape(text[at : piece.start()]), _ALLOWED[int((piece.lastgroup or "p0")[1:])]]
        at = piece.end()
    return re.compile(rf"^\s*{''.join(parts)}{re.escape(text[at:])}\s*$", re.MULTILINE)


def missing(shown: list[str], told: str) -> list[str]:
    """Returns the lines of the page that nothing in `told` looks like."""
    return [line for line in shown if not pattern(line).search(told)]
