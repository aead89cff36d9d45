"""The index of the decisions, docs/decisions/README.md, made from their headers: `python3 -m buildtools.decisions` writes it.

A decision is a file NNNN-words.md.  It begins with its title, `# N. Title`, its date, `- Date: YYYY-MM-DD`, and its status: `accepted`,
`superseded by NNNN` or `amended by NNNN`, where several numbers stand with commas between them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "decisions"
INDEX = "README.md"
_NAME = re.compile(r"(\d{4})-[a-z0-9-]+\.md")
_HEADER = re.compile(
    r"# (?P<number>\d+)\. (?P<title>.+[^.\n])\n\n- Date: (?P<date>\d{4}-\d\d-\d\d)\n"
    r"- Status: (?P<status>accepted|(superseded|amended) by (?P<by>\d{4}(, \d{4})*))\n\n"
)
_HEAD = """# Decisions

Why things are as they are: one page for each decision, with its context, what was decided, what was rejected and what was given up.
A page keeps its number. *Superseded*: read the later decisions instead. *Amended*: it holds, with the changes in the later decisions.
Gaps in the numbering: pieces of work that were done at the same time reserved blocks of numbers, and numbers that nobody needed stay
unused; no decision was ever removed or renumbered.

`python3 -m buildtools.decisions` makes this page from the headers of the others.

| number | date | title | status | superseded or amended by |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True, slots=True)
class Decision:
    file: str
    number: int
    title: str
    date: str
    status: str  # accepted, superseded, amended
    by: tuple[int, ...]


def read(path: Path) -> Decision:
    """One decision.  Raises ValueError when its name or its header is not as the module says."""
    name, header = _NAME.fullmatch(path.name), _HEADER.match(path.read_text())
    if name is None or header is None or int(name[1]) != int(header["number"]):
        raise ValueError(f"{path.name}: name or header is wrong; buildtools/decisions.py says what they look like")
    by = tuple(int(number) for number in re.findall(r"\d{4}", header["by"] or ""))
    return Decision(path.name, int(name[1]), header["title"], header["date"], header["status"].split()[0], by)


def every(folder: Path = FOLDER) -> list[Decision]:
    """All decisions by number.  Raises ValueError when one names a later decision that is not there, or is not later."""
    found = [read(path) for path in sorted(folder.glob("*.md")) if path.name != INDEX]
    numbers = [one.number for one in found]
    for one in found:
        if wrong := [number for number in one.by if number not in numbers or number <= one.number]:
            raise ValueError(f"{one.file}: {wrong} are no later decisions")
    if len(set(numbers)) < len(numbers):
        raise ValueError("two decisions have one number")
    return found


def index(decisions: list[Decision]) -> str:
    """The text of README.md."""
    files = {one.number: one.file for one in decisions}
    rows = [
        f"| {one.number} | {one.date} | [{one.title}]({one.file}) | {one.status} | "
        f"{', '.join(f'[{number}]({files[number]})' for number in one.by)} |"
        for one in decisions
    ]
    return _HEAD + "\n".join(rows) + "\n"


def main() -> int:
    (FOLDER / INDEX).write_text(index(every()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
