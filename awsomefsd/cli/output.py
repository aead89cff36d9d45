"""The output of commands: a table for people, JSON with stable keys for programs (-o table|json)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from awsomefsd.base.log import printable
from awsomefsd.base.sizes import format_bytes, parse_bytes

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


SIZE = Size()


def typed_again(what: str, option: str) -> str:
    """Returns what the user types when asked for `what`.  Raises click.Abort if nobody answers, and names the option for scripts then."""
    try:
        return str(click.prompt(f"Type {what} to go on", default="", show_default=False, err=True))
    except click.Abort:
        click.echo(f"\nnobody answered, so nothing was done; a script gives {what} with {option}", err=True)
        raise


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = (), empty: str = "") -> None:
    """Prints a table without decoration, as wide as the terminal; into a pipe or a file, as wide as its content.

    `right` names the columns that are aligned to the right; `empty` is printed if there is no row.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    if not rows and empty:
        click.echo(empty)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)
    console.print(table)


def message_dict(message: Any, convert: dict[str, Callable[[Any], Any]] | None = None) -> dict[str, Any]:
    """Returns a protobuf message as a dictionary with every field, under its name in admin.proto; 64-bit numbers stay numbers.

    `convert` is applied to the values of the fields that it names.
    """
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = dict(sorted(value.items()))
        elif field.is_repeated:
            value = [message_dict(item) if field.message_type is not None else item for item in value]
        elif field.message_type is not None:
            value = message_dict(value)
        if convert and field.name in convert:
            value = convert[field.name](value)
        fields[field.name] = value
    return fields


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun: "1 fault", "2 faults"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quota(limit: int) -> str:
    return format_bytes(limit) if limit else "none"
