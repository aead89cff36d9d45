"""The elements of all pages: tables, lists of fields, findings, figures as people read them.  Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from awsomefsd.ui.markup import Child, Markup, join, tag

_SEVERITIES = {"error": "error", "warning": "warning", "info": "info"}


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Child]],
    right: Iterable[str] = (),
    empty: str = "none",
    heading: bool = False,
) -> Markup:
    """Returns a table; each cell knows the name of its column, for screens that are too narrow for columns.

    `right` names the columns that are aligned to the right; `empty` is said where there is no row; `heading`: the caption is shown.
    """
    right, rows = frozenset(right), list(rows)
    kinds = ["right" if column in right else None for column in columns]
    above = tag("h2", caption) if heading else None
    if not rows:
        return join([above, tag("p", empty, class_="empty")])
    heads = [tag("th", column, scope="col", role="columnheader", class_=kind) for column, kind in zip(columns, kinds, strict=True)]
    body = []
    for row in rows:
        named = zip(row, columns, kinds, strict=True)
        cells = [tag("td", tag("div", cell), role="cell", data_label=column, class_=kind) for cell, column, kind in named]
        body.append(tag("tr", *cells, role="row"))
    made = tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", tag("tr", *heads, role="row"), role="rowgroup"),
        tag("tbody", *body, role="rowgroup"),
        role="table",
    )
    return join([above, tag("div", made, class_="wide", role="region", aria_label=caption, tabindex=0)])


def fields(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """Returns names and their values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def mark(severity: str, words: str) -> Markup:
    """Returns words that have the colour of a severity: "ok", "error", "warning" or "info"; anything else has none."""
    return tag("span", words, class_=f"mark {_SEVERITIES.get(severity, 'ok' if severity == 'ok' else 'plain')}")


def findings(health: Iterable[Any], empty: str = "Nothing is wrong.") -> Markup:
    """Returns what was found (pb.Health), each with what mends it, the worst first."""
    order = list(_SEVERITIES)
    found = [
        tag(
            "li",
            tag("p", mark(one.severity, one.severity), " ", tag("code", one.code)),
            tag("p", one.what),
            tag("p", tag("strong", "Fix: "), code_words(one.fix), class_="fix"),
            class_=f"finding {_SEVERITIES.get(one.severity, 'info')}",
        )
        for one in sorted(health, key=lambda one: order.index(one.severity) if one.severity in order else len(order))
    ]
    return tag("ul", *found, class_="findings") if found else tag("p", empty, class_="empty")


def code_words(said: str) -> Markup:
    """Returns a sentence whose parts between backquotes are commands."""
    return join(tag("code", part) if number % 2 else part for number, part in enumerate(said.split("`")))


def chart(name: str, title: str) -> Markup:
    """Returns the place of a chart, which the script draws into."""
    return tag("figure", tag("figcaption", title), tag("div", "Charts need the page's script.", class_="chart", data_chart=name))


def instant(ms: int) -> Markup:
    """Returns a time of the wall clock, UTC."""
    told = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms / 1_000))
    return tag("time", f"{told} UTC", datetime=told.replace(" ", "T") + "Z")


def duration(seconds: float) -> str:
    """Returns a length of time, rounded to its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    days, hours, minutes = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
