"""awsomefsd gc: what the collection of this node would do now, planned by its own choice and not carried out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import GivenName, counted, message_dict, output_option, print_json, print_table, say

if TYPE_CHECKING:
    from awsomefsd.admin.client import AdminClient

PLAN_S = 600.0
REASONS = {
    "threshold": "too little of each is dead",
    "later": "sparse too; what gives something comes in later rounds",
    "no gain": "what lives in them, packed, would free no segment",
    "open": "a writer still fills them",
    "quarantine": "a late write could reach them (`awsomefsd quarantine ls`)",
    "metadata": "the metadata's own",
    "unreadable": "have wrong bytes; the daemon's log names the files",
    "absent": "no node sees the device",
    "elsewhere": "another node collects them, or this one when ordered",
    "new": "sealed while this plan was made",
}
HOW = {
    "by itself": "by itself",
    "when ordered": "only when ordered (`awsomefsd device collect start`) or space is low",
    "drain": "because the device is drained",
    "damaged": "because of damage that scrub has found",
}


@click.command(cls=CliCommand)
@click.argument("which", metavar="[VOLUME|DEVICE]", required=False, type=GivenName())
@output_option
@click.pass_obj
def gc(invocation: Invocation, which: str | None, form: str) -> None:
    """Show what collection by this node would do now, and what it would give back.  It changes nothing.

    The collector itself makes the plan.  With VOLUME only segments with bytes of it are shown, with DEVICE (number, path or UUID) only
    those on it.  Each node collects its own devices, and those shared ones that are its turn.  `awsomefsd device collect start` does it.
    """
    with invocation.client() as client:
        devices = list(client.call("ListDevices").devices)
        volume, device = _chosen(client, devices, which) if which else ("", 0)
        plan = client.call("PlanCollection", timeout_s=PLAN_S, volume=volume, device=device)
    if form == "json":
        print_json(message_dict(plan))
        return
    _print(plan, {one.device: one.path or one.uuid for one in devices})


def _chosen(client: AdminClient, devices: list[Any], which: str) -> tuple[str, int]:
    """Returns the volume or the device of this name.  Raises UsageError, which lists both."""
    volumes = sorted(one.name for one in client.call("ListVolumes").volumes)
    if which in volumes:
        return which, 0
    for one in devices:
        if which in (str(one.device), one.uuid, one.path):
            return "", one.device
    known = ", ".join(f"{one.device} ({one.path or one.uuid})" for one in devices[:20]) or "none"
    raise click.UsageError(f"there is no volume or device {which!r} (volumes: {', '.join(volumes[:20]) or 'none'}; devices: {known})")


def _print(plan: Any, named: dict[int, str]) -> None:
    def place(device: int) -> str:
        return named.get(device, f"device {device}") if device else "a pool"

    for how in HOW:
        _print_sets(how, [one for one in plan.sets if one.how == how], place)
    if not plan.sets:
        say("Collection has nothing to do here.")
    if plan.left:
        say("\nWhat it leaves, and why:")
        print_table(
            ["DEVICE", "SEGMENTS", "LIVE", "DEAD", "BECAUSE"],
            [
                [place(row.device), row.segments, *map(format_bytes, (row.live_bytes, row.dead_bytes)), REASONS.get(row.reason, row.reason)]
                for row in plan.left
            ],
            right=("SEGMENTS", "LIVE", "DEAD"),
        )  # fmt: skip
    say(f"\n{_when(plan)}")


def _print_sets(how: str, sets: Iterable[Any], place: Any) -> None:
    sets = list(sets)
    if not sets:
        return
    copied, freed = (sum(getattr(one, name) for one in sets) for name in ("copied_bytes", "freed_bytes"))
    segments = counted(sum(len(one.segments) for one in sets), "segment")
    say(f"It would free {segments}, copy {format_bytes(copied)} and give back {format_bytes(freed)}, {HOW[how]}:")
    print_table(
        ["DEVICE", "SEGMENTS", "LIVE", "COPIED", "GIVEN BACK"],
        [
            [place(one.device), len(one.segments), *map(format_bytes, (one.live_bytes, one.copied_bytes, one.freed_bytes))]
            for one in sets
        ],
        right=("SEGMENTS", "LIVE", "COPIED", "GIVEN BACK"),
    )  # fmt: skip


def _when(plan: Any) -> str:
    rule = (
        f"A segment is collected from {plan.dead_percent} % of dead bytes on; from {plan.dead_percent_low} % when that is ordered, or when "
        f"less than {plan.low_free_percent} % of all segments are free ({plan.segments_free} of {plan.segments_total} are)."
    )
    match plan.when:
        case "stopped":
            return f"{rule}\nCollection is stopped: nothing is done until `awsomefsd device collect start`."
        case "now":
            return f"{rule}\nCollection is at work, or begins at once."
        case _:
            seconds = counted(plan.look_in_seconds, "second")
            return f"{rule}\nIt looks again within {seconds}; while nothing in the cluster changes, when something does."
