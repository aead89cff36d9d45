"""The command line: which commands there are, the options all of them take, and the one place where an error becomes words and a status.

Commands are imported when they are used; `awsomefsd --help` imports click and this file.  Exit status: 0 ok, 1 error, 2 usage, 3 degraded
(status), 4 refused because data would be lost.  Users see no traceback; AWSOMEFSD_DEBUG=1 shows it.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from awsomefsd import errors

if TYPE_CHECKING:
    from awsomefsd.admin.client import AdminClient
    from awsomefsd.config import Settings

OK, ERROR, USAGE, DEGRADED, WOULD_LOSE_DATA = range(5)
INTERRUPTED = 130

# name: (module:attribute, one line of help)
COMMANDS = {
    "init": ("init:init", "Make this machine the first node of a new cluster."),
    "run": ("run:run", "Run the node daemon in the foreground."),
    "keeper": ("keeper:keeper", "Run the keeper, which holds the mounts of this host."),
    "supervise": ("supervise:supervise", "Keep keeper and daemon running (where no service manager does)."),
    "token": ("token:token", "Make tokens that bring machines into one cluster."),
    "join": ("join:join", "Make this machine a node of the cluster that a token names."),
    "leave": ("join:leave", "Take this node out of its cluster."),
    "node": ("node:node", "List, cordon, drain and remove nodes."),
    "ca": ("ca:ca", "List and rotate the certificate authority."),
    "status": ("status:status", "Show how this node is; exit status 3 if something needs you."),
    "device": ("device:device", "Add, list, grow and remove storage devices."),
    "quarantine": ("quarantine:quarantine", "List and release what late writes could still reach."),
    "volume": ("volume:volume", "Create, list, change and delete volumes."),
    "mount": ("mount:mount", "Mount a volume on a directory."),
    "mount-pyfuse3": ("mount_pyfuse3:mount_pyfuse3", "Mount a volume through libfuse, served by this process."),
    "umount": ("mount:umount", "Make everything durable and unmount."),
    "flush": ("mount:flush", "Make everything written to a mount durable."),
    "fsck": ("fsck:fsck", "Check and repair a stopped node."),
    "scrub": ("scrub:scrub", "Look at everything that is stored, beside running mounts."),
    "meta": ("meta:meta", "Back up, restore, dump and load the metadata."),
    "upgrade": ("upgrade:upgrade", "Follow and finish a rolling upgrade."),
    "probe": ("probe:probe", "Ask whether the daemon of this node answers."),
    "log": ("log:log", "Follow the stream of changes."),
    "config": ("config:config", "Show and check the configuration."),
    "self-check": ("self_check:self_check", "Check that this program works on this host."),
    "version": ("version:version", "Show the version."),
    "mount-helper": ("mount_helper:mount_helper", "What /sbin/mount.awsomefs runs."),
    "check-copy": ("check_copy:check_copy", "Check a copy of the state store (for scrub)."),
    "umount-helper": ("mount_helper:umount_helper", "What /sbin/umount.fuse.awsomefs runs."),
}
HIDDEN = frozenset({"mount-helper", "umount-helper", "check-copy"})


class Session:
    """What a command needs: settings, and a client of the daemon.  Each made when first asked for."""

    def __init__(self) -> None:
        self.state_dir: Path | None = None
        self.run_dir: Path | None = None
        self.config_file: Path | None = None
        self._settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            from awsomefsd import config

            self._settings = config.load(self.config_file, state_dir=self.state_dir, run_dir=self.run_dir)
        return self._settings

    def client(self) -> AdminClient:
        """Connects; raises Unavailable or Refused with what to do."""
        from awsomefsd.admin.client import AdminClient

        return AdminClient(self.settings.admin_socket)


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value is not None:
        setattr(context.ensure_object(Session), str(parameter.name), Path(value).absolute())
    return value


def _global_options() -> list[click.Parameter]:
    path = click.Path(path_type=Path)
    return [
        click.Option(["--state-dir"], type=path, expose_value=False, callback=_keep, help="State of this node [/var/lib/awsomefsd]."),
        click.Option(["--run-dir"], type=path, expose_value=False, callback=_keep, help="Sockets of this node [/run/awsomefsd]."),
        click.Option(["--config", "config_file"], type=path, expose_value=False, callback=_keep, help="Configuration file (TOML or YAML)."),
    ]


class Command(click.Command):
    """A command that takes the global options too, so that they may stand before or behind its name."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params += _global_options()


class Group(click.Group):
    """A group whose commands take the global options."""

    command_class = Command


class LazyGroup(click.Group):
    """Imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"awsomefsd.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise click.UsageError(f"there is no command {name!r}{hint}; `awsomefsd --help` lists them", ctx)
        return super().resolve_command(ctx, args)


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from awsomefsd import __version__

        click.echo(f"awsomefsd {__version__}")
        context.exit()


cli = LazyGroup(
    name="awsomefsd",
    help="One program that turns the storage of Linux machines into a POSIX filesystem.",
    params=[
        *_global_options(),
        click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def run(words: list[str]) -> int:
    """Run a command line; the exit status."""
    try:
        result = cli.main(args=words, prog_name="awsomefsd", standalone_mode=False, obj=Session())
        return result if isinstance(result, int) else OK
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as err:
        err.show()
        return USAGE if isinstance(err, click.UsageError) else ERROR
    except (click.Abort, KeyboardInterrupt):
        return _say("stopped", INTERRUPTED)
    except errors.WouldLoseData as err:
        return _say(str(err), WOULD_LOSE_DATA)
    except errors.Error as err:
        return _say(str(err), ERROR)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has what it wanted
        return ERROR
    except Exception as err:
        return _say_unexpected(err)


def _say(words: str, code: int) -> int:
    _raise_in_debug()
    click.echo(f"awsomefsd: {words}", err=True)
    return code


def _say_unexpected(err: Exception) -> int:
    if isinstance(err, OSError):
        return _say(f"{err.filename or 'system call'}: {err.strerror or err}", ERROR)
    return _say(f"a bug: {type(err).__name__}: {err}; run the same with AWSOMEFSD_DEBUG=1 and report what it shows", ERROR)


def _raise_in_debug() -> None:
    if os.environ.get("AWSOMEFSD_DEBUG"):
        import traceback

        traceback.print_exc()
