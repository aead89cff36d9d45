"""Man pages and shell completions, made from the command line itself: what --help says is the one source.

One page for the program with every command in it (awsomefsd(8)), and two short ones for what mount(8) and umount(8) run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from awsomefsd.cli.main import COMMANDS, HIDDEN, STATUSES, cli

SHELLS = {"bash": "awsomefsd", "zsh": "_awsomefsd", "fish": "awsomefsd.fish"}
_COMPLETE = "_AWSOMEFSD_COMPLETE"
_FILES = (
    ("/etc/awsomefsd/awsomefsd.toml", "configuration; every key may be missing"),
    ("/var/lib/awsomefsd", "identity, journal and metadata of the node; what must survive"),
    ("/run/awsomefsd", "sockets"),
    ("/var/log/awsomefsd", "logs of the workers, bounded by the keeper; keeper and daemon write to the journal"),
)


def _escaped(text: str) -> str:
    """Text that roff prints as it is."""
    rows = text.replace("\\", "\\e").replace("-", "\\-").splitlines()
    return "\n".join("\\&" + row if row[:1] in (".", "'") else row for row in rows)


def _paragraphs(text: str) -> str:
    parts = [" ".join(part.split()) for part in text.replace("\b", "").split("\n\n")]
    return "\n.PP\n".join(_escaped(part) for part in parts if part)


def _head(name: str, section: int, epoch: int, what: str) -> list[str]:
    date = time.strftime("%Y-%m-%d", time.gmtime(epoch))
    title = f'.TH {name.upper()} {section} "{date}" "awsomefsd" "System Administration"'
    return [title, ".SH NAME", f"{_escaped(name)} \\- {_escaped(what)}"]


def _options(command: click.Command, context: click.Context, shared: set[str]) -> list[str]:
    rows: list[str] = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and parameter.name not in shared:
            rows += [".TP", f"\\fB{_escaped(record[0])}\\fR", _escaped(" ".join(record[1].split()) or "see above")]
    return rows


def _command(words: tuple[str, ...], command: click.Command, parent: click.Context, shared: set[str]) -> list[str]:
    context = click.Context(command, info_name=words[-1], parent=parent)
    if isinstance(command, click.Group):
        rows = []
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            if not inner.hidden:
                rows += _command((*words, name), inner, context, shared)
        return rows
    usage = " ".join(command.collect_usage_pieces(context))
    rows = [f'.SS "awsomefsd {_escaped(" ".join(words))} {_escaped(usage)}"', _paragraphs(command.help or "")]
    return rows + _options(command, context, shared)


def page(epoch: int) -> str:
    """awsomefsd(8)."""
    context = click.Context(cli, info_name="awsomefsd")
    rows = _head("awsomefsd", 8, epoch, "storage of Linux machines as one POSIX filesystem")
    rows += [".SH SYNOPSIS", "\\fBawsomefsd\\fR [\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]"]
    rows += [".SH DESCRIPTION", _paragraphs(cli.help or ""), ".SH OPTIONS", *_options(cli, context, set()), ".SH COMMANDS"]
    shared = {str(parameter.name) for parameter in cli.get_params(context)}
    for name in COMMANDS:
        if name not in HIDDEN:
            command = cli.get_command(context, name)
            assert command is not None
            rows += _command((name,), command, context, shared)
    rows += [".SH EXIT STATUS", *(line for code, text in STATUSES.items() for line in (".TP", f"\\fB{code}\\fR", _escaped(text)))]
    rows += [".SH FILES", *(line for path, text in _FILES for line in (".TP", f"\\fI{_escaped(path)}\\fR", _escaped(text)))]
    rows += [".SH SEE ALSO", ".BR mount.awsomefs (8),", ".BR umount.fuse.awsomefs (8),", ".BR systemctl (1)"]
    return "\n".join(rows) + "\n"


def helper_pages(epoch: int) -> dict[str, str]:
    """What mount(8) and umount(8) run; name -> page."""
    mount = _head("mount.awsomefs", 8, epoch, "mount a volume of awsomefsd")
    mount += [".SH SYNOPSIS", "\\fBmount\\fR \\-t awsomefs [\\-o \\fIoptions\\fR] \\fIvolume\\fR \\fIdirectory\\fR", ".SH DESCRIPTION"]
    mount += ["Run by", ".BR mount (8)", "for filesystems of type awsomefs, also from", ".BR fstab (5).", ".SH EXAMPLE", ".nf"]
    mount += [_escaped("photos /srv/photos awsomefs defaults,_netdev,nofail,x-systemd.requires=awsomefsd.service 0 0"), ".fi"]
    umount = _head("umount.fuse.awsomefs", 8, epoch, "unmount a volume of awsomefsd")
    umount += [".SH SYNOPSIS", "\\fBumount\\fR \\fIdirectory\\fR", ".SH DESCRIPTION", "Run by", ".BR umount (8)."]
    umount += ["Everything written is made durable first; without the daemon it refuses."]
    tail = [".SH SEE ALSO", ".BR awsomefsd (8)"]
    return {"mount.awsomefs": "\n".join(mount + tail) + "\n", "umount.fuse.awsomefs": "\n".join(umount + tail) + "\n"}


def completion(shell: str) -> str:
    """The script that a shell sources; it asks the program at each completion."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, f"click knows no shell {shell}"
    if shell == "bash":  # its constructor would ask the bash of this machine for its version
        setattr(kind, "_check_version", staticmethod(lambda: None))  # noqa: B010 - private to click
    return kind(cli, {}, "awsomefsd", _COMPLETE).source() + "\n"


def write(root: Path, epoch: int) -> None:
    """Below `root`, at the places where both distributions look."""
    pages = {"awsomefsd": page(epoch), **helper_pages(epoch)}
    folder = root / "usr/share/man/man8"
    folder.mkdir(parents=True)
    for name, text in pages.items():
        (folder / f"{name}.8").write_text(text)
    places = {"bash": "bash-completion/completions", "zsh": "zsh/vendor-completions", "fish": "fish/vendor_completions.d"}
    for shell, name in SHELLS.items():
        path = root / "usr/share" / places[shell] / name
        path.parent.mkdir(parents=True)
        path.write_text(completion(shell))
    for path in root.rglob("*"):
        os.utime(path, (epoch, epoch))
