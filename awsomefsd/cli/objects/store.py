"""awsomefsd store: add, list, show, change, check and detach stores of objects.  Not complete: in no help (main.UNFINISHED)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from awsomefsd.base.errors import ConfigError, Refused
from awsomefsd.cli.main import ERROR, OK, CliGroup, Invocation
from awsomefsd.cli.output import GivenName, message_dict, output_option, print_fields, print_json, print_table, say
from awsomefsd.cli.token import seconds

SET_S = 600.0
STORE_NAME = GivenName("look at `awsomefsd store ls`")
_CREDENTIALS = {
    "kept": "kept by the cluster",
    "lost": "lost in a recovery of the metadata; give them again: `awsomefsd store set NAME --access-key-file F`",
    "role": "of each machine's role",
    "": "none are needed",
}
_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"))


@click.group(cls=CliGroup, hidden=True)
def store() -> None:
    """Add, list, change, check and detach stores of objects."""


def _reach(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how a store is reached."""
    for option in reversed(
        (
            click.option("--endpoint", help="Where a bucket is asked: http://HOST:PORT or https://HOST:PORT [Amazon's]."),
            click.option("--region", help="The bucket's region [us-east-1]."),
            click.option("--access-key-file", metavar="FILE", help="Key id and secret, a line each, or as ~/.aws/credentials; - is stdin"),
            click.option("--role", is_flag=True, help="Each node asks with the role of its machine; the cluster keeps no keys."),
            click.option("--ca-file", metavar="FILE", help="Further authorities of certificates (PEM); none: the machine's only."),
            click.option("--proxy", help="http://HOST:PORT that requests go through, or none [none, whatever the environment says]."),
        )
    ):
        command = option(command)
    return command


def _promised(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--keep", help="For how long the store keeps what is deleted, such as 1d [1d].")(command)
    return click.option("--rpo", help="How old what is not in the store yet may become, such as 5m [5m].")(command)


@store.command()
@click.argument("name", type=STORE_NAME)
@click.argument("url")
@_reach
@click.option("--seal", "sealed", is_flag=True, help="Encrypt what is stored, with a key that the cluster keeps.")
@_promised
@output_option
@click.pass_obj
def add(invocation: Invocation, name: str, url: str, form: str, **given: Any) -> None:
    """Add the bucket s3://BUCKET/PREFIX, or the directory file:///PATH, as store NAME.

    The store is checked first; a prefix that belongs to another cluster is refused.  All nodes of role node can use it then.  Keys come
    from --access-key-file, or from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of this command; the cluster keeps them.  A directory has
    to be the same one on every node.  If this is interrupted, the same command goes on.
    """
    settings = _settings(given, keys=url.startswith("s3:"))
    with invocation.client() as client:
        made = _progress(client.store_work("AddStore", name=name, url=url, settings=settings), quiet=form == "json")[1]
    if form == "json":
        print_json(message_dict(made))
    else:
        say(f"added store {made.name}: {made.url}, era {made.era_number} ({made.era})")


@store.command()
@output_option
@click.pass_obj
def ls(invocation: Invocation, form: str) -> None:
    """List all stores."""
    with invocation.client() as client:
        stores = client.call("ListStores").stores
    if form == "json":
        print_json([message_dict(found) for found in stores])
        return
    rows = [[one.name, one.url, one.state, "yes" if one.sealed else "no", _span(one.rpo_ms), _span(one.keep_ms)] for one in stores]
    print_table(["NAME", "URL", "STATE", "SEALED", "RPO", "KEEP"], rows, empty="no stores")


@store.command()
@click.argument("name", type=STORE_NAME)
@output_option
@click.pass_obj
def show(invocation: Invocation, name: str, form: str) -> None:
    """Show the details of one store; its keys are never shown."""
    with invocation.client() as client:
        (found,) = client.call("ListStores", name=name).stores
    if form == "json":
        print_json(message_dict(found))
        return
    fields: list[tuple[str, object]] = [("name", found.name), ("url", found.url), ("state", found.state)]
    fields += [(what, value) for what, value in (("endpoint", found.endpoint), ("region", found.region), ("proxy", found.proxy)) if value]
    fields += [
        ("credentials", _CREDENTIALS[found.credentials].replace("NAME", found.name)),
        *([("certificates", "given, beside the machine's")] if found.ca else []),
        ("sealed", "yes" if found.sealed else "no"),
        ("rpo", _span(found.rpo_ms)),
        ("keep", _span(found.keep_ms)),
        ("era", f"{found.era_number} ({found.era})" if found.era_number else _NO_ERA.get(found.state, "none yet")),
        ("added", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.created_ns / 1e9))),
    ]
    print_fields(fields)



_NO_ERA = {"recovered": "none since the cluster was recovered; nothing is sent before one has begun: see the log of the leader"}


@store.command(name="set")
@click.argument("name", type=STORE_NAME)
@_reach
@_promised
@output_option
@click.pass_obj
def set_(invocation: Invocation, name: str, form: str, **given: Any) -> None:
    """Change how a store is reached, its keys, or what is promised of it.

    Where it would be reached in another way, it is asked first whether it is the same store; if not, nothing is changed.
    """
    settings = _settings(given)
    if not settings:
        options = "--access-key-file, --role, --endpoint, --region, --ca-file, --proxy, --rpo or --keep"
        raise click.UsageError(f"nothing to change: give {options}")
    with invocation.client() as client:
        changed = client.call("SetStore", timeout_s=SET_S, name=name, settings=settings)
    if form == "json":
        print_json(message_dict(changed))
    else:
        say(f"changed store {changed.name}")


@store.command()
@click.argument("what", metavar="NAME|URL")
@_reach
@output_option
@click.pass_obj
def check(invocation: Invocation, what: str, form: str, **given: Any) -> int:
    """Try a store from this node: one that the cluster has, by its NAME, or another one, by its URL and the options of `add`.

    A few objects are put, read and deleted again; what is there is not touched.  Exit status 1 if something does not fit.
    """
    is_url = ":" in what or what.startswith("/")
    settings = _settings(given, keys=what.startswith("s3:"))
    if settings and not is_url:
        raise click.UsageError("how a store that the cluster has is reached is known; leave the options out, or give a URL")
    asked = {"url": what, "settings": settings} if is_url else {"name": what}
    with invocation.client() as client:
        findings = _progress(client.store_work("CheckStore", **asked), quiet=form == "json")[0]
    bad = [one for one in findings if one.level == "bad"]
    if form == "json":
        print_json([message_dict(one) for one in findings])
    elif not bad:
        say("the store fits")
    return ERROR if bad or not findings else OK


@store.command()
@click.argument("name", type=STORE_NAME)
@click.pass_obj
def detach(invocation: Invocation, name: str) -> None:
    """Forget a store, and its keys.

    What lies there stays, the mark of this cluster as well: no other cluster takes the prefix before it is emptied by hand.
    """
    with invocation.client() as client:
        gone = client.call("DetachStore", name=name)
    say(f"detached store {gone.name}; what lies at {gone.url} stays there, marked as this cluster's")


def _progress(told: Iterator[Any], *, quiet: bool) -> tuple[list[Any], Any]:
    """Prints findings as they come; returns them, and the store that came last."""
    findings, found = [], None
    for step in told:
        if step.HasField("store"):
            found = step.store
            continue
        findings.append(step.finding)
        if not quiet:
            say(f"{step.finding.level:<5}{step.finding.tried}: {step.finding.words}", indent=5)
    return findings, found


def _settings(given: dict[str, Any], *, keys: bool = False) -> dict[str, Any]:
    """Returns the StoreSettings of what was typed.  `keys`: those of the environment count where none are given."""
    settings: dict[str, Any] = {name: given[name] for name in ("endpoint", "region") if given[name] is not None}
    if given["proxy"] is not None:
        settings["proxy"] = "" if given["proxy"] == "none" else given["proxy"]
    if given["ca_file"] is not None:
        settings["ca"] = "" if given["ca_file"] == "none" else _text(Path(given["ca_file"]), "--ca-file")
    for option in ("rpo", "keep"):
        if given.get(option) is not None:
            settings[f"{option}_ms"] = seconds(given[option], f"--{option}") * 1_000
    settings |= {name: True for name in ("role", "sealed") if given.get(name)}
    if given["access_key_file"] is not None:
        if given["role"]:
            raise click.UsageError("--access-key-file and --role exclude each other: give keys, or let each machine's role count")
        settings["keys"] = _keys(given["access_key_file"])
    elif keys and not given["role"] and "AWS_ACCESS_KEY_ID" in os.environ:
        from awsomefsd.tier.credentials import from_environment

        found = from_environment()
        settings["keys"] = {"key_id": found.key_id, "secret": found.secret, "token": found.token}
    return settings


def _keys(name: str) -> dict[str, str]:
    from awsomefsd.tier import credentials

    if name == "-":
        found = credentials.from_text(sys.stdin.buffer.read(credentials.FILE_BYTES_MAX + 1), "of standard input")
    else:
        found = credentials.from_file(Path(name))
    return {"key_id": found.key_id, "secret": found.secret, "token": found.token}


def _text(path: Path, option: str) -> str:
    try:
        return path.read_bytes().decode("ascii")
    except OSError as err:
        raise Refused(f"{option} {path}: {err.strerror}") from err
    except ValueError:
        raise ConfigError(f"{option} {path}: holds no certificates (PEM)") from None


def _span(ms: int) -> str:
    unit, letter = next((unit, letter) for unit, letter in _UNITS if ms % unit == 0 or letter == "s")
    return f"{ms // unit}{letter}"
