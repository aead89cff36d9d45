"""awsomefsd log: print the stream of changes, as lines for people or JSON objects for programs."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from awsomefsd.base.log import printable
from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.output import GivenName, say


@click.group(cls=CliGroup)
def log() -> None:
    """Print the changes of the metadata as they are committed, and manage named readers."""


@log.command()
@click.option(
    "--from", "after", type=click.IntRange(0, 2**63 - 1), default=0, help="Begin after this index [the oldest entry that is kept]."
)
@click.option("--reader", type=GivenName(), help="Name of this reader.  It continues next time where it stopped; the log is kept for it.")
@click.option("--no-wait", is_flag=True, help="Exit after the newest entry.")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output format: lines for people, JSON objects for programs.",
)
@click.pass_obj
def follow(invocation: Invocation, after: int, reader: str | None, no_wait: bool, form: str) -> None:
    """Print every change of the metadata in order, and wait for more."""
    with invocation.client() as client:
        for change in client.follow(after=after, follow=not no_wait, reader=reader or ""):
            click.echo(_json_line(change)) if form == "json" else say(_line(change))


@log.command(name="remove-reader")
@click.argument("name")
@click.pass_obj
def remove_reader(invocation: Invocation, name: str) -> None:
    """Remove the named reader; the log is no longer kept for it."""
    with invocation.client() as client:
        client.call("RemoveReader", name=name)
    say(f"reader {name} is removed")


def _line(change: Any) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change.time_ns / 1e9))
    said = json.loads(change.fields)
    if change.command == "Apply":
        said["records"] = ", ".join(_record(record["command"]) for record in said["records"])
    fields = " ".join(f"{key}={_short(value)}" for key, value in said.items() if value not in (None, "", [], 0, False))
    origin = f" mount={change.mount:x} unique={change.unique:x}" if change.mount else ""
    return f"{change.index:>8}  {stamp}  {change.command:<14} {fields}{origin}"


def _record(command: dict[str, Any]) -> str:
    """One record of a batch, as short as it can be told; the JSON lines have all of it."""
    return " ".join(str(word) for word in (command.get("operation"), command.get("name")) if word)


def _short(value: Any) -> str:
    text = printable(json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _json_line(change: Any) -> str:
    names = ("index", "term", "time_ns", "site", "stamp", "mount", "unique", "session", "epoch", "command")
    return json.dumps({**{name: getattr(change, name) for name in names}, "fields": json.loads(change.fields)}, ensure_ascii=False)
