"""The part of docs/PERFORMANCE.md about one node, and its chart, from the runs that are kept: `python3 -m tests.bench.one_node_page`.

Pure but for `main`: figures in, Markdown and SVG out.  A test makes both again and compares.
"""

from __future__ import annotations

import html
import math
import statistics
import sys
from typing import Any

from buildtools.say import CHECKOUT
from tests.bench.record import FOLDER, Run, kept
from tests.bench.shared_tables import markdown, number

PAGE = CHECKOUT / "docs" / "PERFORMANCE.md"
CHART = FOLDER / "one-node.svg"
BEGIN = "<!-- made by tests.bench.one_node_page: begin -->\n"
END = "<!-- made by tests.bench.one_node_page: end -->"
OURS, DURABLE, EXT4, NULL = "awsomefs", "awsomefs, durable names", "ext4", "null FUSE"
PEER = "better peer"
PEERS = ("MooseFS", "GlusterFS")
HISTORY = 8  # runs at most

_NAMES = {NULL: 0.5, PEER: 2.0}
# measure → what it is measured by: at least so much of that
GOALS: dict[str, dict[str, float]] = {
    "create + close": _NAMES,
    "unlink": _NAMES,
    "mkdir": _NAMES,
    "rename": _NAMES,
    "symlink": _NAMES,
    "chmod": _NAMES,
    "stat, names dropped": {NULL: 0.9},
    "write a 4 KiB file": {PEER: 2.0},
    "read a 4 KiB file, cold": {PEER: 2.0},
    "write a 4 KiB file + fsync": {EXT4: 0.45},
    "1 MiB sequential write + fsync": {EXT4: 0.6, NULL: 0.7, "GlusterFS": 2.0},
    "1 MiB sequential read, cold": {EXT4: 0.9, PEER: 2.0},
    "1 MiB sequential read, warm": {PEER: 1.0},
    "random 4 KiB read, cold": {EXT4: 0.8},
    "random 4 KiB write": {NULL: 0.9},
    "100 B append": {NULL: 0.9},
    "random 4 KiB write + fdatasync": {EXT4: 0.45},
    "4 KiB write + fdatasync, 16 callers": {EXT4: 0.5},
    "sqlite transaction, rollback journal": {EXT4: 0.4},
    "sqlite transaction, WAL": {EXT4: 0.4},
}
COLOURS = {OURS: "#0072b2", DURABLE: "#56b4e9", EXT4: "#000000", NULL: "#999999", "MooseFS": "#d55e00", "GlusterFS": "#009e73"}


def rate(run: Run, measure: str, target: str) -> float | None:
    """The median; of `PEER` that of the faster one.  None if it was not measured."""
    rates = run["measures"].get(measure, {}).get("rates", {})
    if target == PEER:
        return max((statistics.median(rates[peer]) for peer in PEERS if peer in rates), default=None)
    return statistics.median(rates[target]) if target in rates else None


def ratio(run: Run, measure: str, other: str, ours: str = OURS) -> float | None:
    mine, theirs = rate(run, measure, ours), rate(run, measure, other)
    return mine / theirs if mine and theirs else None


def _cell(value: float | None) -> str:
    return "-" if value is None else number(value)


def goal(run: Run, measure: str) -> str:
    """Each goal with "reached" or, in bold, what was missed."""
    words = []
    for other, least in GOALS.get(measure, {}).items():
        found = ratio(run, measure, other)
        if found is None:
            words.append(f"{least:g} × {other}: not measured")
        else:
            words.append(f"{least:g} × {other}: {'reached' if found >= least else f'**{found:.2f}**'}")
    return "; ".join(words)


def _cpu(run: Run, measure: str, target: str) -> str:
    used = run["measures"][measure]["cpu_us"]
    own = [value for name, value in used.items() if name.rpartition(": ")[0] == target]
    return " + ".join(f"{value:,.0f}" for value in own) or "-"


def rates_table(run: Run) -> str:
    others = [target for target in run["targets"] if target not in (OURS, DURABLE)]
    head = ["measure", OURS, "durable names", *(f"to {other}" for other in others), "to reach"]
    rows = []
    for measure, row in run["measures"].items():
        cells = [f"{_cell(rate(run, measure, OURS))} {row['unit']}", _cell(rate(run, measure, DURABLE))]
        rows.append([measure, *cells, *(_cell(ratio(run, measure, other)) for other in others), goal(run, measure)])
    return markdown(head, rows)


def cpu_table(run: Run) -> str:
    served = [target for target in run["targets"] if target != EXT4]
    rows = ([measure, *(_cpu(run, measure, target) for target in served)] for measure in run["measures"])
    return markdown(["measure", *served], rows)


def _against(measure: str) -> str:
    """What a measure is followed by over commits: a rate says little, another machine has another one."""
    goals = GOALS.get(measure, {})
    return next((other for other in (EXT4, NULL) if other in goals), NULL)


def history_table(runs: list[Run]) -> str:
    measures = list(dict.fromkeys(measure for run in runs for measure in run["measures"]))
    rows = ([measure, _against(measure), *(_cell(ratio(run, measure, _against(measure))) for run in runs)] for measure in measures)
    return markdown(["measure", "ratio to", *(f"{run['commit']}, {run['date']}" for run in runs)], rows)


def section(runs: list[Run]) -> str:
    run = runs[-1]
    machine = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
    load = " and ".join(f"{value:g}" for value in run["load"])
    parts = [
        f"Commit {run['commit']}, {run['date']}; {run['rounds']} rounds; {machine}; load before and after: {load}. "
        "Ratios are of medians, greater is better.",
        f"![Rates of each target, those of awsomefs being 1](figures/{CHART.name})",
        rates_table(run),
        "µs of CPU for each operation, entry, file or MiB (medians). Two figures are worker + daemon; a peer's are of all its processes, "
        "clients and servers. What ext4 uses is its callers'.",
        cpu_table(run),
        markdown(["the node", "figure"], [[name, number(value)] for name, value in run["node"].items()]),
        "Over commits, as ratios:",
        history_table(runs[-HISTORY:]),
    ]
    return "\n\n".join(parts)


# --- chart --------------------------------------------------------------------------------------------------------------------
LEFT, WIDTH, ROW, TOP = 270, 640, 24, 64
LOW, HIGH = 0.01, 1000.0  # of ours


def _x(value: float) -> float:
    share = math.log(min(max(value, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
    return round(LEFT + share * WIDTH, 1)


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {more}>{html.escape(words)}</text>'


def chart(run: Run) -> str:
    """An SVG picture: a row for each measure, a dot for each target, log scale, ours at 1."""
    targets = [target for target in run["targets"] if target in COLOURS]
    height = TOP + ROW * len(run["measures"]) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" font-family="sans-serif" font-size="12">',
        f"<title>Rates of each target, those of {OURS} being 1, commit {html.escape(run['commit'])}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number_, target in enumerate(targets):
        x = 20 + number_ * 150
        lines += [f'<circle cx="{x}" cy="18" r="5" fill="{COLOURS[target]}"/>', _text(x + 10, 22, target)]
    step = LOW
    while step <= HIGH:
        x = _x(step)
        lines.append(f'<line x1="{x:g}" x2="{x:g}" y1="{TOP - 8}" y2="{height - 16}" stroke="{"#888888" if step == 1 else "#dddddd"}"/>')
        lines.append(_text(x, TOP - 14, f"{step:g}", 'text-anchor="middle"'))
        step = round(step * 10, 6)
    for row, measure in enumerate(run["measures"]):
        y = TOP + ROW * row + 8
        lines.append(_text(LEFT - 12, y + 4, measure, 'text-anchor="end"'))
        lines += [_dot(run, measure, target, y) for target in targets if ratio(run, measure, OURS, target) is not None]
    return "\n".join([*lines, "</svg>", ""])


def _dot(run: Run, measure: str, target: str, y: float) -> str:
    of_ours = ratio(run, measure, OURS, target) or 0.0
    told = f"{target}: {_cell(rate(run, measure, target))} {run['measures'][measure]['unit']}"
    return f'<circle cx="{_x(of_ours):g}" cy="{y:g}" r="5" fill="{COLOURS[target]}"><title>{html.escape(told)}</title></circle>'


def page(text: str, runs: list[Run]) -> str:
    """The page with this part in the place of the one it has.  ValueError if it has no markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no line {(BEGIN if not begin else END).strip()!r}")
    return f"{head}{begin}\n{section(runs)}\n\n{end}{tail}"


def main() -> int:
    runs: list[Any] = kept()
    if not runs:
        print(f"no figures in {FOLDER}: python3 build.py bench --record makes some", file=sys.stderr)
        return 1
    PAGE.write_text(page(PAGE.read_text(), runs))
    CHART.write_text(chart(runs[-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
