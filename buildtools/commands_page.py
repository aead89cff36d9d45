"""docs/COMMANDS.md, the reference of the command line, made from the commands themselves.

``python3 -m buildtools.commands_page`` writes it; a test makes it again and compares.  The text is that of --help; only the examples are
written here, and the same test parses each of them.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator

import click

from awsomefsd.cli.main import HELP, HIDDEN, STATUSES, cli, first_sentence
from buildtools.say import CHECKOUT

PAGE = CHECKOUT / "docs" / "COMMANDS.md"
WIDTH = 140
_DEFAULT = re.compile(r"\s*\[([^\[\]]+)\]\.?$")  # "Directory with the state [/var/lib/awsomefsd]."
_HEAD = """# Commands

Every command of `awsomefsd` with its arguments, options and defaults. This page is made from the program
(`python3 -m buildtools.commands_page`): `awsomefsd COMMAND --help` and `man awsomefsd` say the same. [OPERATIONS.md](OPERATIONS.md) says
when to use which.
"""
_MOUNT_8 = """`mount -t awsomefs VOLUME DIRECTORY`, `mount -o remount,… DIRECTORY` and `umount DIRECTORY` work too, also from fstab(5): the
packages install the helpers `/sbin/mount.awsomefs`, `/sbin/mount.fuse.awsomefs` (for a remount) and `/sbin/umount.fuse.awsomefs`. They exit
with the statuses of mount(8): 1 for wrong usage, 32 for a mount or an unmount that failed.
"""

# command: [(what the example does, the command line)]
EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "init": [("The first node of a cluster, with the default directories:", "awsomefsd init")],
    "run": [("With a configuration file of its own:", "awsomefsd run --config /etc/awsomefsd/other.toml")],
    "keeper": [("After an upgrade of the program, without a restart of the keeper:", "awsomefsd keeper --upgrade")],
    "token create": [
        ("For three machines that carry metadata, valid for an hour:", "awsomefsd token create --role node --uses 3 --ttl 1h"),
        ("For one machine that only mounts volumes:", "awsomefsd token create"),
    ],
    "token generate": [
        ("For three machines that find each other by multicast:", "awsomefsd token generate --expect 3"),
        ("For three machines without multicast:", "awsomefsd token generate --expect 3 --endpoint 10.0.0.1:7440 --endpoint 10.0.0.2:7440"),
    ],
    "token revoke": [("The ID is that of `awsomefsd token list`:", "awsomefsd token revoke 7f3a9c21")],
    "join": [("With the token on standard input, where no other user sees it:", "awsomefsd join -")],
    "leave": [("And delete the state, so that the machine can join again:", "awsomefsd leave --purge")],
    "node drain": [("Before maintenance or removal:", "awsomefsd node drain storage-3")],
    "node remove": [("A node that is gone for good:", "awsomefsd node remove storage-3")],
    "status": [
        ("For people:", "awsomefsd status"),
        ("For programs:", "awsomefsd status -o json"),
        ("The meaning of every health code:", "awsomefsd status --codes"),
    ],
    "doctor": [
        ("What is wrong on this node and in its cluster:", "awsomefsd doctor"),
        ("Before a node is installed:", "awsomefsd doctor --preflight"),
        ("Something to send to whoever helps:", "awsomefsd doctor --bundle node1.tar.gz"),
    ],
    "device add": [
        ("A local disk:", "awsomefsd device add /dev/nvme1n1"),
        ("A LUN that several nodes see:", "awsomefsd device add --shared /dev/mapper/lun0"),
        ("In a script, and all data on the disk is lost:", "awsomefsd device add /dev/sdb --yes-destroy /dev/sdb"),
    ],
    "device drain": [("And wait until it can be removed:", "awsomefsd device drain 2 --wait")],
    "device recover": [
        ("First see what would come back:", "awsomefsd device recover --dry-run /dev/nvme1n1"),
        ("Then recover it:", "awsomefsd device recover --confirm-nobody-writes /dev/nvme1n1"),
    ],
    "quarantine release": [("After the machine was switched off:", 'awsomefsd quarantine release 42 --reason "power is off since 14:00"')],
    "volume create": [("With a quota, for one user:", "awsomefsd volume create photos --quota 500G --uid 1000 --gid 1000 --mode 750")],
    "volume set": [("Twice the space:", "awsomefsd volume set photos --quota 1T"), ("No limit:", "awsomefsd volume set photos --quota 0")],
    "volume delete": [("In a script, with all its files:", "awsomefsd volume delete photos --yes-destroy photos")],
    "mount": [
        ("On this node alone:", "awsomefsd mount photos /srv/photos"),
        ("On several nodes at the same time (each runs this):", "awsomefsd mount photos /srv/photos -O shared,noatime"),
        ("List the mounts:", "awsomefsd mount"),
    ],
    "umount": [("One mount:", "awsomefsd umount /srv/photos"), ("All mounts of this node:", "awsomefsd umount --all")],
    "flush": [("Before a backup of the devices:", "awsomefsd flush /srv/photos")],
    "fsck": [
        ("Check only:", "awsomefsd fsck"),
        ("See what a repair would do:", "awsomefsd fsck --dry-run"),
        ("Repair:", "awsomefsd fsck --repair"),
    ],
    "scrub start": [("At most 32 MiB a second:", "awsomefsd scrub start --rate 32M")],
    "meta backup": [("To a file of mode 0600:", "awsomefsd meta backup cluster.backup")],
    "meta restore": [
        ("Verify a backup:", "awsomefsd meta restore --check cluster.backup"),
        ("On a machine with an empty state directory:", "awsomefsd meta restore --confirm-nobody-writes cluster.backup /dev/nvme1n1"),
    ],
    "meta recover": [
        ("When the other voters never come back:", "awsomefsd meta recover --force-single --confirm-majority-lost --confirm-nobody-writes"),
    ],
    "log follow": [
        ("A consumer that continues where it stopped:", "awsomefsd log follow --reader search-index -o json"),
        ("All changes until now:", "awsomefsd log follow --no-wait"),
    ],
    "events": [
        ("An audit log that misses nothing:", "awsomefsd events --reader audit -o json"),
        ("Who joined, and who was fenced:", "awsomefsd events --no-wait --kind join --kind mount"),
    ],
    "probe": [("As a readiness probe:", "awsomefsd probe --ready")],
    "config show": [("The settings in force:", "awsomefsd config show")],
}  # fmt: skip


def leaves(command: click.Command, context: click.Context, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group below `command` that is not hidden, with the words that name it; groups come before their commands."""
    assert isinstance(command, click.Group)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        if found.hidden or (not words and name in HIDDEN):
            continue
        yield (*words, name), found
        if isinstance(found, click.Group):
            yield from leaves(found, click.Context(found, info_name=name, parent=context), (*words, name))


def _paragraphs(text: str) -> str:
    """The text of --help as Markdown: paragraphs are wrapped, those that click does not wrap stay as they are."""
    parts = []
    for part in text.strip().split("\n\n"):
        if part.startswith("\b"):
            parts.append("```text\n" + part.removeprefix("\b\n") + "\n```")
        else:
            words = " ".join(part.split())
            parts.append(textwrap.fill(words, WIDTH, break_on_hyphens=False, break_long_words=False))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(_cell(cell) for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _values(kind: click.ParamType) -> str:
    """The values of a type that --help would name."""
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange):
        bounds = [f"from {kind.min}" if kind.min is not None else "", f"to {kind.max}" if kind.max is not None else ""]
        return "a number " + " ".join(filter(None, bounds))
    return ""


def _argument(argument: click.Argument, context: click.Context) -> tuple[str, str, str]:
    name = argument.make_metavar(context).strip("[]{}").removesuffix("...").strip("[]{}")
    many = "one or more" if argument.required else "any number"
    count = many if argument.nargs == -1 else "required" if argument.required else "optional"
    if isinstance(argument.type, click.Choice):
        return _values(argument.type), f"argument, {count}: one of these", ""
    return f"`{name}`", f"argument, {count}", ""


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    metavar = "" if option.is_flag else "CHOICE" if isinstance(option.type, click.Choice) else option.make_metavar(context)
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = f" `{metavar.split()[0]}`" if metavar else ""
    text = option.help or ""
    default = ""
    if found := _DEFAULT.search(text):
        default, text = found[1], text[: found.start()].rstrip(".") + "."
    elif option.show_default and option.default is not None:
        default = f"`{option.default}`"
    allowed = "" if option.is_flag else _values(option.type)
    notes = [text, f"Values: {allowed}." if allowed else "", "Required." if option.required else ""]
    return names + value, " ".join(filter(None, notes)), default


def _parameters(command: click.Command, context: click.Context, shared: frozenset[str]) -> str:
    rows = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            rows.append(_argument(parameter, context))
        elif isinstance(parameter, click.Option) and parameter.name not in shared and not parameter.hidden:
            rows.append(_option(parameter, context))
    return _table(("argument or option", "meaning", "default"), rows) if rows else ""


def _examples(name: str) -> str:
    """Comments and commands, as a shell takes them."""
    lines = [line for what, example in EXAMPLES.get(name, ()) for line in (f"# {what.rstrip(':')}", example)]
    return "\n".join(["```sh", *lines, "```"]) if lines else ""


def _section(words: tuple[str, ...], command: click.Command, shared: frozenset[str]) -> str:
    name = " ".join(words)
    context = click.Context(command, info_name=f"awsomefsd {name}")
    parts = [f"{'#' * (len(words) + 1)} awsomefsd {name}", _paragraphs(command.help or "")]
    if not isinstance(command, click.Group):
        parts.insert(1, f"`awsomefsd {name} {' '.join(command.collect_usage_pieces(context))}`")
        parts += [_parameters(command, context, shared), _examples(name)]
    if name == "umount":
        parts.append(_MOUNT_8.rstrip())
    return "\n\n".join(filter(None, parts))


def page() -> str:
    """The whole of docs/COMMANDS.md."""
    context = click.Context(cli, info_name="awsomefsd")
    shared = frozenset(str(parameter.name) for parameter in cli.params) - {"version"}
    found = list(leaves(cli, context, ()))
    lists = [f"- [`awsomefsd {words[0]}`](#awsomefsd-{words[0]}): {first_sentence(command)}" for words, command in found if len(words) == 1]
    options = [_option(option, context) for option in cli.params if isinstance(option, click.Option) and option.name in shared]
    options.append(("`-h`, `--help`", "Show the help of the command and exit.", ""))
    statuses = [(f"{status}", meaning) for status, meaning in STATUSES.items()]
    parts = [
        _HEAD.rstrip(),
        _paragraphs(HELP.split("\n\n", 1)[1]),
        "## Options of every command",
        "They may come before or after the name of the command. `awsomefsd --version` prints the version.",
        _table(("option", "meaning", "default"), options),
        "## Exit status",
        "These hold for every command that does not list others below.",
        _table(("status", "meaning"), statuses),
        "## All commands",
        "\n".join(lists),
        *(_section(words, command, shared) for words, command in found),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
