"""The output of commands: a table for people, JSON with stable keys for programs (-o table|json)."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import click

from awsomefsd.admin.plain import message_dict as message_dict
from awsomefsd.base.log import printable
from awsomefsd.base.sizes import format_bytes, parse_bytes

FILES_MAX = 2**63 - 1  # that is how a quota is stored
_UNBOUNDED = 100_000  # columns: rich pads no line to them
output_option = click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output format: a table for people, JSON for programs.",
)


class Size(click.ParamType):
    """A size in bytes on the command line: 4096, 512MiB, 8G, 1.5T."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except ValueError as err:
            self.fail(str(err), param, ctx)


class Quota(Size):
    """A limit in bytes, or "none"; 0 is none too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if value == "none" else super().convert(value, param, ctx)


class FileQuota(click.IntRange):
    """A limit of files, or "none"; 0 is none too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if value == "none" else int(super().convert(value, param, ctx))


class Seconds(click.FloatRange):
    """A number in a range; nan is in none, but no comparison says so."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value} is no number", param, ctx)
        return found


class GivenName(click.ParamType):
    """A name that is not empty: an empty one is a variable of a script that nobody set.

    `instead`: what else may be done, for the refusal.
    """

    name = "text"

    def __init__(self, instead: str = "leave the option out") -> None:
        self._instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "":
            self.fail(f"the name is empty; write one, or {self._instead}", param, ctx)
        return str(value)


SIZE = Size()
QUOTA = Quota()
FILE_QUOTA = FileQuota(0, FILES_MAX)


def typed_again(what: str, option: str) -> str:
    """Returns what the user types when asked for `what`.  Raises click.Abort if nobody answers, and names the option for scripts then."""
    try:
        return str(click.prompt(f"Type {what} to go on", default="", show_default=False, err=True))
    except click.Abort:
        click.echo(f"\nnobody answered, so nothing was done; a script gives {what} with {option}", err=True)
        raise


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def terminal_columns() -> int:
    """Returns how many columns the terminal has that standard output goes to; 0 for a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def say(text: str = "", fg: str | None = None, indent: int | None = None) -> None:
    """Prints lines for people.  On a terminal they break at words; what follows in a line is indented by `indent`, or 2 more than it.

    Words are never broken: paths and UUIDs are copied from here.
    """
    columns = terminal_columns()
    for line in text.split("\n"):
        begin = len(line) - len(line.lstrip())
        pieces = [line]
        if columns and len(line) > columns:
            further = " " * (begin + 2 if indent is None else indent)
            pieces = textwrap.wrap(line, columns, subsequent_indent=further, break_long_words=False, break_on_hyphens=False) or [line]
        for piece in pieces:
            click.echo(click.style(piece, fg=fg) if fg else piece)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Prints one field a line, all values in one column."""
    fields = list(fields)
    width = max((len(name) for name, _ in fields), default=0) + 2
    for name, value in fields:
        say(f"{name:<{width}}{printable(value)}", indent=width)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = (), empty: str = "") -> None:
    """Prints a table without decoration; into a pipe or a file, as wide as its content.

    A table that is wider than the terminal is printed as blocks, one field a line: a cell that is folded can neither be read nor copied.
    `right` names the columns that are aligned to the right; `empty` is printed if there is no row.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells and empty:
        say(empty)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(highlight=False, width=_UNBOUNDED)
    needed = Measurement.get(console, console.options, table).maximum
    if terminal_columns() and needed > terminal_columns():
        for number, row in enumerate(cells):
            say() if number else None
            print_fields(zip(columns, row, strict=True))
    else:
        console.print(table)


def readable(fields: dict[str, Any]) -> list[tuple[str, object]]:
    """Returns the fields of a message for people: sizes with a unit, and a quota of 0 as none."""
    shown: list[tuple[str, object]] = []
    for name, value in fields.items():
        if name.startswith("quota_") and not value:
            value = "none"
        elif name == "bytes" or name.endswith("_bytes"):
            value = format_bytes(value)
        shown.append((name, value))
    return shown


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun: "1 fault", "2 faults"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quota(limit: int) -> str:
    return format_bytes(limit) if limit else "none"
