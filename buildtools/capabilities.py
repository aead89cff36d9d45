"""The second half of docs/CAPABILITIES.md: lists that are read from the code, so that the page says what the code does.

``python3 -m buildtools.capabilities`` writes them between the two markers of the page; a test compares both.  People write what stands
above the markers: what was tried, what depends on the host, and what is not built.
"""

from __future__ import annotations

import collections
import errno
import sys
from collections.abc import Iterable
from typing import Any

import click

from awsomefsd import __version__
from awsomefsd.base import consistency, identity, levels, limits
from awsomefsd.base.errors import FsError
from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import cli
from awsomefsd.config import mount_options
from awsomefsd.config.settings import Settings
from awsomefsd.csi import controller, node, rules
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.fuse import abi, handlers, negotiate
from awsomefsd.meta.api.commands import COMMAND_VERSION
from awsomefsd.meta.api.messages import PROTOCOL_VERSION
from awsomefsd.node.health import codes
from buildtools.say import CHECKOUT

PAGE = CHECKOUT / "docs" / "CAPABILITIES.md"
BEGIN, END = "<!-- made by buildtools.capabilities: begin -->\n", "<!-- made by buildtools.capabilities: end -->\n"
_IN_SESSION = {abi.Opcode.INIT, abi.Opcode.INTERRUPT}  # answered before the table of handlers is asked
_BOUNDS = (
    ("nodes of a cluster", "NODES_MAX"), ("machines that share one founding token", "FOUNDING_NODES_MAX"),
    ("volumes", "VOLUMES_MAX"), ("bytes of a volume's name", "VOLUME_NAME_BYTES_MAX"),
    ("registered readers of the log", "STREAM_READERS_MAX"),
    ("size of a file", "FILE_BYTES_MAX"), ("bytes of a file name", "NAME_BYTES_MAX"), ("links of an inode", "LINKS_MAX"),
    ("size of an extended attribute", "XATTR_VALUE_BYTES_MAX"), ("size of all extended attributes of an inode", "XATTRS_BYTES_MAX"),
    ("locks of an inode, with `shared`", "LOCKS_PER_INODE_MAX"), ("waiting locks of an inode, with `shared`", "LOCK_WAITERS_PER_INODE_MAX"),
    ("open files of a mount", "OPEN_FILES_MAX"), ("size of a file that is kept inline", "INLINE_BYTES_MAX"),
    ("buffered data of a mount", "DIRTY_BYTES_MAX"), ("age of buffered data before their flush begins, ms", "DIRTY_AGE_MS_MAX"),
)  # fmt: skip


def _words(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(row) + " |" for row in lines]


def _versions() -> list[str]:
    rows = [
        ("program", __version__), ("format of the state directory", str(identity.FORMAT_VERSION)),
        ("commands of the log", str(COMMAND_VERSION)), ("metadata protocol", str(PROTOCOL_VERSION)),
        ("level of a cluster (rolling upgrades)", str(levels.LEVEL)),
        ("FUSE protocol", f"{abi.KERNEL_MAJOR}.{abi.MINOR_MIN} to {abi.KERNEL_MAJOR}.{abi.MINOR_MAX}"),
    ]  # fmt: skip
    return ["### Versions", "", *_table(("what", "version"), rows)]


def _mount_options() -> list[str]:
    values = [f"{name}=" for name in (*mount_options.VALUES, *mount_options.MAPS)]
    choices = [f"{name}={word}" for name, words in mount_options.CHOICES.items() for word in words]
    rows = [
        ("of the kernel", _words(sorted(mount_options.FLAGS))),
        ("of awsomefsd", _words((*mount_options.OURS, *choices))),
        ("with a value", f"{_words(values)}; `consistency=` {consistency.WORDS}"),
        ("for mount(8), fstab and systemd, without effect here", _words(sorted(mount_options.BOOKKEEPING)) + ", `x-…`, `comment=`"),
    ]
    said = "Any other option is an error that names it. [OPERATIONS.md](OPERATIONS.md) says what each does."
    return ["### Mount options", "", said, "", *_table(("", "options"), rows)]


def _refusal(call: Any) -> int:
    """The errno with which a row of the table refuses every request; 0 for one that serves."""
    if call.__qualname__ != "_refuse.<locals>.refuse":
        return 0
    try:
        call(None, None, 0, memoryview(b""))
    except FsError as err:
        return err.errno
    raise AssertionError("a row that refuses did not refuse")


def _requests() -> list[str]:
    by_answer: dict[int, list[str]] = collections.defaultdict(list)
    table = handlers.table(negotiate.WANTED)
    for opcode in abi.Opcode:
        by_answer[0 if opcode in _IN_SESSION else _refusal(table[opcode][0])].append(opcode.name)
    served = by_answer.pop(0)
    rows = [(f"served ({len(served)})", _words(served))]
    rows += [(f"answered {errno.errorcode[number]}", _words(names)) for number, names in sorted(by_answer.items())]
    newest = negotiate.agree(negotiate.Offer(abi.KERNEL_MAJOR, abi.MINOR_MAX, 0, (1 << 64) - 1))
    asked = _words(name for name in _flag_names() if getattr(abi, name) & newest.flags)
    rows.append(("INIT flags that are asked for; those of locks only with `shared`", asked))
    return ["### Requests of the kernel", "", *_table(("", "FUSE requests"), rows)]


def _flag_names() -> list[str]:
    """INIT flags of abi.py, in its order."""
    names = list(vars(abi))
    return [name for name in names[names.index("ASYNC_READ") : names.index("FATTR_MODE")] if name.isupper()]


def _commands() -> list[str]:
    context = click.Context(cli, info_name="awsomefsd")
    rows, plain = [], []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            inner = click.Context(command, info_name=name, parent=context)
            found = [(one, command.get_command(inner, one)) for one in command.list_commands(inner)]
            below = [one for one, made in found if made is not None and not made.hidden]
            rows.append((f"`awsomefsd {name}`", _words(below)))
        else:
            plain.append(name)
    rows.append(("`awsomefsd`", _words(plain)))
    said = "[COMMANDS.md](COMMANDS.md) and `awsomefsd COMMAND --help` explain each."
    return ["### Commands", "", said, "", *_table(("group", "commands"), rows)]


def _settings() -> list[str]:
    rows = []
    for name, field in Settings.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        rows.append((f"`[{name}]`", _words(inner)) if inner else ("top level", f"`{name}`"))
    top = _words(name.strip("`") for place, name in rows if place == "top level")
    sections = [row for row in rows if row[0] != "top level"]
    said = "`awsomefsd config show` prints them with their values."
    return ["### Settings", "", said, "", *_table(("section", "keys"), [("top level", top), *sections])]


def _csi() -> list[str]:
    def of(kind: Any, numbers: Iterable[int]) -> str:
        return _words(kind.Name(number) for number in numbers)

    controls, nodes = pb.ControllerServiceCapability.RPC.Type, pb.NodeServiceCapability.RPC.Type
    rows = [
        ("controller", of(controls, controller.CAPABILITIES)),
        ("controller, with `csi.attach`", of(controls, controller.ATTACH_CAPABILITIES)),
        ("node", of(nodes, node.CAPABILITIES)),
    ]
    for version, found in controller.HEALTH_CAPABILITIES.items():
        if found:
            both = f"{of(controls, found)} (controller), {of(nodes, node.HEALTH_CAPABILITIES[version])} (node)"
            rows.append((f'with `csi.health_api = "{version}"`', both))
    rows.append(("access modes", of(pb.VolumeCapability.AccessMode.Mode, sorted(rules.MODES))))
    return ["### CSI capabilities", "", *_table(("", "capabilities"), rows)]


def _health() -> list[str]:
    count = collections.Counter(code.severity for code in codes.CODES.values())
    text = ", ".join(f"{count[severity]} {severity}" for severity in codes.SEVERITIES)
    said = f"{len(codes.CODES)} codes: {text}. `awsomefsd status --codes` prints them with their fixes."
    return ["### Health codes", "", said, "", _words(codes.CODES)]


def _bounds() -> list[str]:
    rows = []
    for what, name in _BOUNDS:
        number = getattr(limits, name)
        size = name.endswith("BYTES_MAX") and number >= limits.KIB
        rows.append((what, format_bytes(number) if size else f"{number:,}"))
    return ["### Bounds", "", *_table(("what", "at most"), rows)]


def section() -> str:
    """What stands between the markers: Markdown, with a line end."""
    parts = (_versions(), _mount_options(), _requests(), _commands(), _settings(), _csi(), _health(), _bounds())
    return "\n".join("\n".join([*part, ""]) for part in parts)


def page(text: str) -> str:
    """The page `text` with this section in the place of the one it has.  ValueError if it has no markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no line {(BEGIN if not begin else END).strip()!r}")
    return f"{head}{begin}\n{section()}\n{end}{tail}"


def main() -> int:
    PAGE.write_text(page(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
