"""The table of health codes in docs/TROUBLESHOOTING.md, made from the code.

``python3 -m buildtools.health_codes`` writes it between the two markers of the page; a test compares both.  The same codes are what
`awsomefsd status --codes` prints.
"""

from __future__ import annotations

import sys

from awsomefsd.node.health.codes import CODES
from buildtools.say import CHECKOUT

PAGE = CHECKOUT / "docs" / "TROUBLESHOOTING.md"
BEGIN, END = "<!-- made by buildtools.health_codes: begin -->\n", "<!-- made by buildtools.health_codes: end -->\n"


def table() -> str:
    """Markdown, one line a code, in the order of the code; with a line end."""
    rows = [("code", "severity", "what it says", "what to do"), ("---",) * 4]
    rows += [(f"`{code.name}`", code.severity, code.says, code.fix) for code in CODES.values()]
    assert not any("|" in cell for row in rows for cell in row), "a cell would end there"
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(text: str) -> str:
    """The page `text` with this table in the place of the one it has.  ValueError if it has no markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no line {(BEGIN if not begin else END).strip()!r}")
    return f"{head}{begin}\n{table()}\n{end}{tail}"


def main() -> int:
    PAGE.write_text(page(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
