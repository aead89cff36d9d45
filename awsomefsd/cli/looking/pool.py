"""awsomefsd pool: look at the pool of node-local storage, and say how it heals."""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.output import SIZE, counted, message_dict, output_option, print_fields, print_json, print_table, say
from awsomefsd.cli.token import seconds

WATCH_S = 2.0


@click.group(cls=CliGroup)
def pool() -> None:
    """Look at the pool of node-local storage, and say how it heals."""


@pool.command()
@click.option("-v", "--verbose", is_flag=True, help="Every device too.")
@click.option("--watch", "watches", is_flag=True, help="Again every two seconds, until Ctrl-C.")
@output_option
@click.pass_obj
def status(invocation: Invocation, verbose: bool, watches: bool, form: str) -> None:
    """Show the room of the pool by policy and host, what segments lack, and how that is mended.

    Segments lack something after a loss, while a device is drained, or when the policy of a volume has changed; what is most urgent is
    mended first.
    """
    with invocation.client() as client:
        while True:
            found = client.call("GetPoolStatus")
            if watches and form != "json":
                click.clear()
            if form == "json":
                print_json(message_dict(found))
            else:
                _print(found, verbose=verbose)
            if not watches:
                return
            time.sleep(WATCH_S)


@pool.command(name="set")
@click.option("--heal-rate", type=SIZE, default=None, help="Bytes a second that are copied to one device at most, such as 64M.")
@click.option("--lost-after", default=None, help="How long a device may be away before what it has is copied: a number with s, m, h or d.")
@click.option("--reserve", type=int, default=None, help="Percent of each host that is kept for repair.")
@output_option
@click.pass_obj
def set_(invocation: Invocation, heal_rate: int | None, lost_after: str | None, reserve: int | None, form: str) -> None:
    """Say how the pool heals; what is not given stays as it is."""
    given: dict[str, int] = {}
    if heal_rate is not None:
        given["heal_bytes_per_s"] = heal_rate
    if lost_after is not None:
        given["lost_after_ms"] = 1_000 * seconds(lost_after, "--lost-after")
    if reserve is not None:
        given["reserve_percent"] = reserve
    if not given:
        raise click.UsageError("nothing is to be changed; give --heal-rate, --lost-after or --reserve")
    if reserve is not None and reserve < 0:
        raise click.UsageError("--reserve: not below 0")
    with invocation.client() as client:
        found = client.call("SetPool", **given)
    if form == "json":
        print_json(message_dict(found))
    else:
        say(f"the pool {_rules(found)}")


def _rules(found: Any) -> str:
    return (
        f"heals with {format_bytes(found.heal_bytes_per_s)}/s to a device, counts a device as lost after "
        f"{found.lost_after_ms / 1_000:.0f} s, and keeps {found.reserve_percent} % of each host for repair"
    )


def _print(found: Any, *, verbose: bool) -> None:
    raw = f"{format_bytes(found.raw_bytes)}, {format_bytes(found.raw_free_bytes)} free, {format_bytes(found.stale_bytes)} not trimmed yet"
    promised = format_bytes(found.promised_bytes)
    print_fields(
        [
            ("raw", f"{raw}, {format_bytes(found.reserved_bytes)} for repair"),
            ("df", f"{format_bytes(found.total_bytes)}, {format_bytes(found.free_bytes)} free, {promised} of it promised to writers"),
            ("lacking", _lacking(found)),
            *[("", f"{counted(one.segments, 'segment')} {one.what}, {format_bytes(one.bytes_at_most)} at most") for one in found.lacks],
            *([("lost", f"{counted(found.lost_segments, 'segment')}: nothing is left of them")] if found.lost_segments else []),
            *([("healing", _healing(found.healing))] if found.lacks else []),
            *[("drain", _standing(one)) for one in found.standing],
            ("rules", _rules(found)),
        ]
    )
    say()
    _print_policies(found)
    _print_hosts(found, verbose=verbose)


def _lacking(found: Any) -> str:
    if found.counted_ms_ago < 0:
        return "not counted yet by the node that leads"
    walks = f"; {counted(found.walks, 'change')} still being looked through" if found.walks else ""
    if not found.lacks:
        return f"nothing{walks}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.lacking_since_ms / 1_000))
    return f"since {since}{walks}"


def _healing(healing: Any) -> str:
    words = f"{healing.copies} {'copy' if healing.copies == 1 else 'copies'} under way, {format_bytes(healing.bytes_per_s)}/s"
    if healing.seconds_left >= 0:
        words += f", about {healing.seconds_left} s left"
    if healing.asleep:
        words += f"; nothing can be done for {counted(healing.asleep, 'segment')}: {healing.why}"
    return words


def _standing(one: Any) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.since_ms / 1_000))
    bays = f"{counted(one.segments, 'segment')} ({format_bytes(one.bytes)} of bays)"
    return f"{bays} cannot leave device {one.device} of node {one.node} since {since}: {one.why}"


def _print_policies(found: Any) -> None:
    rows = [
        [
            one.redundancy, ", ".join(one.volumes[:5]) + (f" and {len(one.volumes) - 5} more" if len(one.volumes) > 5 else ""),
            format_bytes(one.total_bytes), format_bytes(one.free_bytes), _domains(one),
        ]
        for one in found.policies
    ]  # fmt: skip
    print_table(["POLICY", "VOLUMES", "USABLE", "FREE", "MIRRORS"], rows, right=("USABLE", "FREE"), empty="no volume is in the pool")


def _domains(one: Any) -> str:
    if one.domains < one.min_copies:
        return f"nothing can be written: {one.domains} of {one.min_copies} take data"
    return f"{min(one.domains, one.copies)} of {one.copies} now" if one.domains < one.copies else f"{one.copies}"


def _print_hosts(found: Any, *, verbose: bool) -> None:
    rows = []
    for host in found.hosts:
        states = sorted({one.state for one in host.devices})
        state = states[0] if len(states) == 1 else "mixed"
        if host.maintenance_until_ms:
            state += f", maintenance until {time.strftime('%H:%M:%S', time.localtime(host.maintenance_until_ms / 1_000))}"
        rows.append([host.name, "", "", *_fill(host, found), state])
        for one in host.devices if verbose else []:
            alone = ", gets no copies for some time" if one.left_alone else ""
            rows.append([f"  {one.node}", one.device, one.device_class or "-", *_fill(one, found), one.state + alone])
    columns = ["HOST", "DEVICE", "CLASS", "SIZE", "FREE", "USED", "STATE"]
    if not verbose:
        columns, rows = [*columns[:1], *columns[3:]], [[row[0], *row[3:]] for row in rows]
    print_table(columns, rows, right=("DEVICE", "SIZE", "FREE", "USED"))


def _fill(one: Any, found: Any) -> list[str]:
    size = found.segment_bytes
    return [format_bytes(one.bays * size), format_bytes(one.free * size), f"{100 * (one.bays - one.free) / max(one.bays, 1):.0f} %"]
