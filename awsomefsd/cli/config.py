"""awsomefsd config show|check."""

from __future__ import annotations

import os
from typing import Any

import click

from awsomefsd.cli.main import Group, Session
from awsomefsd.cli.output import output_option, print_json, print_table


@click.group(cls=Group)
def config() -> None:
    """Show and check the configuration."""


@config.command()
@output_option
@click.pass_obj
def show(session: Session, form: str) -> None:
    """All settings in force, and where each comes from."""
    from awsomefsd import config as configuration

    settings = session.settings
    file = configuration.find_file(session.config_file, os.environ)
    in_file = configuration.file_keys(file)
    rows: list[dict[str, Any]] = []
    for path in configuration.key_paths():
        value: Any = settings
        for part in path:
            value = getattr(value, part)
        rows.append({"key": ".".join(path), "value": _plain(value), "origin": _origin(session, path, in_file)})
    if form == "json":
        print_json(rows)
        return
    print_table(["KEY", "VALUE", "FROM"], [[row["key"], "" if row["value"] is None else row["value"], row["origin"]] for row in rows])


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | None) else str(value)


def _origin(session: Session, path: tuple[str, ...], in_file: dict[tuple[str, ...], str]) -> str:
    from awsomefsd import config as configuration

    if len(path) == 1 and getattr(session, path[0], None) is not None:
        return "the command line"
    return configuration.variable_of(path, os.environ) or in_file.get(path, "default")


@config.command()
@output_option
@click.pass_obj
def check(session: Session, form: str) -> None:
    """Read the configuration as the daemon would; the exit status says whether it is good."""
    from awsomefsd import config as configuration

    file = configuration.find_file(session.config_file, os.environ)
    assert session.settings is not None  # raises ConfigError, which names every bad key
    if form == "json":
        print_json({"ok": True, "file": str(file) if file else None})
    else:
        click.echo(f"{file or 'no configuration file'}: good")
