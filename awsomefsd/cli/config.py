"""awsomefsd config: show and check the configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from awsomefsd.base.errors import ConfigError
from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.output import output_option, print_json, print_table, say


@click.group(cls=CliGroup)
def config() -> None:
    """Show and check the configuration."""


@config.command()
@output_option
@click.pass_obj
def show(invocation: Invocation, form: str) -> None:
    """Show all settings in force, and where each comes from."""
    from awsomefsd.config.settings import file_keys, find_file, key_paths

    settings = invocation.settings
    file = find_file(invocation.config_file, os.environ)
    in_file = file_keys(file)
    rows: list[dict[str, Any]] = []
    for path in key_paths():
        value: Any = settings
        for part in path:
            value = getattr(value, part)
        rows.append({"key": ".".join(path), "value": _plain(value), "origin": _origin(invocation, path, in_file)})
    if form == "json":
        print_json(rows)
        return
    print_table(["KEY", "VALUE", "FROM"], [[row["key"], "" if row["value"] is None else row["value"], row["origin"]] for row in rows])


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | None) else str(value)


def _origin(invocation: Invocation, path: tuple[str, ...], in_file: dict[tuple[str, ...], str]) -> str:
    from awsomefsd.config.settings import variable_of

    if len(path) == 1 and getattr(invocation, path[0], None) is not None:
        return "the command line"
    return variable_of(path, os.environ) or in_file.get(path, "default")


@config.command()
@output_option
@click.pass_obj
def check(invocation: Invocation, form: str) -> None:
    """Check the configuration file and the environment.

    They are read as the daemon reads them, and a token as the daemon reads it where this machine is in no cluster yet.  Exit status 1 and a
    message for each bad key if something is wrong.
    """
    from awsomefsd.config.settings import find_file

    file = find_file(invocation.config_file, os.environ)
    _check_token(invocation.settings.token.get_secret_value(), file)  # `settings` raises ConfigError, which names every bad key
    if form == "json":
        print_json({"ok": True, "file": str(file) if file else None})
    else:
        say(f"{file or 'no configuration file'}: good")


def _check_token(text: str, file: Path | None) -> None:
    """Raises ConfigError for what is no token, and says what one looks like.

    Only `config check` looks: a node that is in a cluster needs its token no more, and is not kept from starting by the rest of one.
    """
    from awsomefsd.cluster.pki import founding_token, token
    from awsomefsd.cluster.pki.token_text import TokenError
    from awsomefsd.config.settings import origin

    if not text:
        return
    try:
        (founding_token if founding_token.is_founding(text) else token).parse(text)
    except TokenError as err:
        raise ConfigError(f"token in {origin(('token',), os.environ, file)}: {err}") from err
