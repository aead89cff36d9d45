"""The figures of `bench --shared` as Markdown, for people and for docs/PERFORMANCE.md: `python -m tests.bench.shared_tables FILE`.

Pure: it knows only what `--json` kept, so an old run is shown again without running anything.  Ratios are of medians, ours first, and
greater is better, also for latencies.  A figure that is missing is "-"; one that was wrong is said in words, and no ratio is made of it.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.shared_measures import CREATES, READS, WRITES

STRICT = "shared"
MODES = "shared,"  # begins the names of our other modes
SCALES = 2.2  # 3 nodes to 1, to reach
SLACK_S, CLEAN_S = 2.0, 1.0
FULL_PERCENT = 90.0  # of all processors: from here on they are the limit
QUIET_PERCENT = 10.0  # used by others while nothing is measured: above it, shares of the processors tell nothing of us
Json = dict[str, Any]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def median(found: Json, measure: str, place: str) -> float | None:
    """None: not measured, or wrong."""
    values = found["runs"].get(measure, {}).get(place, [])
    return statistics.median(values) if values and place not in found["wrong"].get(measure, {}) else None


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of them that so many percent do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


# --- all measures -------------------------------------------------------------------------------------------------------------
def ratio(unit: str, ours: float | None, theirs: float | None) -> str:
    if not ours or not theirs:
        return "-"
    return f"{theirs / ours if unit == 'ms' else ours / theirs:.2f}"


def measures(found: Json) -> str:
    places = [name for name in found.get("places", []) if any(name in row for row in found["runs"].values())]
    others = [name for name in places if not name.startswith(MODES) and name != STRICT]
    rows = []
    for measure, unit in found["units"].items():
        figures = {place: median(found, measure, place) for place in places}
        cells = []
        for place in places:
            value = figures[place]
            cells.append(found["wrong"].get(measure, {}).get(place, "-") if value is None else f"{number(value)} {unit}")
        rows.append([measure, *cells, *(ratio(unit, figures.get(STRICT), figures[other]) for other in others)])
    names = [name if name in others else f"`{name}`" for name in places]
    return markdown(["measure", *names, *(f"to {name}" for name in others)], rows)


# --- what more nodes bring ------------------------------------------------------------------------------------------------------
def processors(found: Json, measure: str, place: str, what: str) -> float | None:
    values = [row[what] for row in found["processors"].get(measure, {}).get(place, []) if what in row]
    return statistics.median(values) if values else None


def a_row(name: str, values: Sequence[float | None], last: str = "") -> list[str]:
    grows = f"{values[2] / values[0]:.2f}" if values[0] and values[2] else "-"
    return [name, *("-" if value is None else number(value) for value in values), last or grows]


def scaling(found: Json) -> str:
    """Rates of 1, 2 and 3, and beside them what the machine has."""
    rows = []
    for what, kind in (("write, MiB/s", WRITES), ("read, MiB/s", READS), ("create, a directory each, /s", CREATES)):
        for place in found.get("places", []):
            values = [median(found, name, place) for name in kind]
            if any(values):
                rows.append(a_row(f"{what}: {place}", values))
        busy = [processors(found, name, STRICT, "busy_percent") for name in kind]
        if any(busy):
            rows.append(a_row(f"{what.partition(',')[0]}: all processors busy, %, {STRICT}", busy, "."))
    parts = {"busy_s": "processor seconds of the machine", "worker_s": "of them workers", "daemon_s": "of them daemons"}
    for what, kind in (("write", WRITES), ("read", READS)):
        for part, words in parts.items():
            values = [processors(found, name, STRICT, part) for name in kind]
            gib = [count * found["amounts"]["stream_mib"] / 1024 for count in (1, 2, 3)]
            each = [None if value is None else value / much for value, much in zip(values, gib, strict=True)]
            rows.append(a_row(f"{what}: {words} per GiB, {STRICT}", each, "."))
    for what, unit in (("checksums", "checksums of 1 MiB, plain processes, /s"), ("loop device", "the loop device, O_DIRECT, MiB/s")):
        told = found.get("limits", {}).get(what, [])
        if told:
            rows.append(a_row(unit, [statistics.median(row[str(count)] for row in told) for count in (1, 2, 3)]))
    said = verdicts(found)
    if "idle" in found:
        shares = ", ".join(f"{value:.1f} % ({role}s)" for role, value in found["idle"].items())
        said.append(f"- Three mounted nodes that do nothing use {shares} of one processor.")
    return markdown(["", "1", "2", "3", "3 to 1"], rows) + "\n\n" + "\n".join(said)


def verdicts(found: Json) -> list[str]:
    """Whether 2.2 was reached; if not, what of the machine one node alone already used."""
    said = []
    others = max(found["others_percent"], default=0.0)
    for what, kind in (("write", WRITES), ("read", READS), ("create in a directory each", CREATES)):
        rates = [median(found, name, STRICT) for name in kind]
        if not rates[0] or not rates[2]:
            continue
        grows = rates[2] / rates[0]
        text = f"- 3 nodes {what} {grows:.2f} times what one does (to reach: {SCALES}"
        if others > QUIET_PERCENT:  # three of ours then have a greater share of the processors than one
            said.append(f"{text}: **not shown**: others kept {others:.0f} % of the processors busy).")
        elif grows >= SCALES:
            said.append(f"{text}: reached).")
        else:
            said.append(f"{text}: **not reached**): {limit(found, kind)}.")
    return said


def limit(found: Json, kind: Sequence[str]) -> str:
    """What the processors had left when one node worked, and when three did."""
    busy = [processors(found, name, STRICT, "busy_percent") for name in kind]
    if not busy[0] or not busy[2]:
        return "processor time was not measured"
    verdict = "that is the machine's limit" if busy[2] >= FULL_PERCENT else "the processors are not the limit"
    least = f"{100 / busy[0]:.2f} times is all that the processors have for that"
    return f"one node keeps {busy[0]:.0f} % of all processors busy, so {least}; with three nodes {busy[2]:.0f} % are busy: {verdict}"


# --- ours alone -----------------------------------------------------------------------------------------------------------------
def requests(found: Json) -> str:
    places = [name for name in found.get("places", []) if any(name in row for row in found["requests"].values())]
    rows = [
        [what, *(number(statistics.median(row[place])) if row.get(place) else "-" for place in places)]
        for what, row in found["requests"].items()
    ]
    for where, works in found.get("names", {}).items():
        for what, row in works.items():
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in list(row["kinds"].items())[:4])
            rows.append([f"per 1,000: {what}; {where}", f"{row['requests']:,} ({kinds})", *[""] * (len(places) - 1)])
    return markdown(["requests to the leader", *(f"`{name}`" for name in places)], rows)


def recalls(found: Json) -> str:
    told = found.get("recalls", {})
    rows = []
    for what, values in told.get("ms", {}).items():
        counted = told["recalls"][what]
        each = f"{statistics.fmean(counted):.2f}" if counted else "0"
        rows.append([what, str(len(values)), *(number(percentile(values, percent)) for percent in (50, 99)), each])
    return markdown(["B, while A holds", "samples", "median, ms", "p99, ms", "recalls each, as the leader counts"], rows) if rows else ""


def goal_s(found: Json, what: str, elected: float) -> float:
    """What a node's end may cost the others."""
    return CLEAN_S if what.startswith("stopped") else found["ttl_s"] + SLACK_S + elected


def ends(found: Json) -> str:
    rows = []
    for what, times in found.get("ends", {}).items():
        if not times:
            continue
        columns = {name: [row[name] for row in times if name in row] for name in ("lock_s", "file_s", "leader_s", "ended_s")}
        cells = [" ".join(f"{value:.2f}" for value in values) or "-" for values in columns.values()]
        goals = [goal_s(found, what, row.get("leader_s", 0.0)) for row in times]
        reached = all(max(row["lock_s"], row["file_s"]) <= goal for row, goal in zip(times, goals, strict=True))
        rows.append([what, *cells, f"{max(goals):.1f} s: {'reached' if reached else '**not reached**'}"])
    head = "a node is|its lock is another's after, s|its file is read after, s|another leads after, s|its end took, s|to reach"
    return markdown(head.split("|"), rows) if rows else ""


def about(found: Json) -> str:
    machine, loads, amounts = found["machine"], found["loads"], found["amounts"]
    others = [f"{name}: {said}" for name, said in found["versions"].items() if said and name in found.get("places", [])]
    others += [f"without {name}: {why}" for name, why in found.get("without", {}).items()]
    idle = max(found["others_percent"], default=0.0)
    rows = [
        f"{found['began']}, {found.get('minutes', 0):.0f} minutes, {machine['processors']} processors, Linux {machine['kernel']}, "
        f"Python {machine['python']}; load {min(loads):.1f} to {max(loads):.1f}, processors {idle:.0f} % busy while nothing was measured.",
        f"Medians of {found['rounds']} rounds in turn; each node: files of {amounts['stream_mib']} MiB, {amounts['creates']} creates, "
        f"{amounts['appends']} appends; {amounts['turns']} turns. {'; '.join(others)}",
    ]
    return "\n".join(rows + ([f"**Not complete: {found['failed']}**"] if found["failed"] else []))


def tables(found: Json) -> str:
    parts = [about(found), measures(found), scaling(found), requests(found), recalls(found), ends(found)]
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    sys.stdout.write(tables(json.loads(Path(sys.argv[1]).read_text())) + "\n")
