"""The command line: its commands, the options that all of them take, and the one place that turns an error into a message and a status.

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

from awsomefsd.base import errors

if TYPE_CHECKING:
    from awsomefsd.admin.client import AdminClient
    from awsomefsd.config.settings import Settings

OK, ERROR, USAGE, DEGRADED, WOULD_LOSE_DATA = range(5)
INTERRUPTED = 130
COMPLETE_VARIABLE = "_AWSOMEFSD_COMPLETE"  # in the environment: a shell asks what may come next

# name: (module:attribute, one line of help)
COMMANDS = {
    "init": ("init:init", "Make this machine the first node of a new cluster."),
    "run": ("processes.run:run", "Run the node daemon in the foreground."),
    "keeper": ("processes.keeper:keeper", "Run the keeper, which keeps the mounts of this host alive."),
    "supervise": ("processes.supervise:supervise", "Run keeper and daemon, and restart them when they end."),
    "token": ("token:token", "Make, list, rotate and revoke the tokens that machines join with."),
    "join": ("join:join", "Make this machine a node of an existing cluster."),
    "leave": ("join:leave", "Take this node out of its cluster."),
    "node": ("node:node", "List, cordon, drain and remove nodes."),
    "ca": ("ca:ca", "List and rotate the certificate authority of the cluster."),
    "status": ("status:status", "Show the state of this node and its cluster."),
    "doctor": ("doctor:doctor", "Find what is wrong on this node and in its cluster, and what mends it."),
    "stats": ("looking.stats:stats", "Print what this node does, one line an interval."),
    "top": ("looking.stats:top", "Show the busiest mounts, operations and nodes."),
    "profile": ("looking.profile:profile", "Show which operations of a mount take the time."),
    "bench": ("looking.bench:bench", "Measure how fast disk, devices, network, metadata and a mount are."),
    "info": ("looking.info:info", "Show what a file is, where its data lies, and who has it open."),
    "summary": ("looking.summary:summary", "Show the sizes and counts of a tree."),
    "gc": ("looking.gc:gc", "Show what collection would do, and what it would give back."),
    "device": ("device:device", "Add, list, grow, drain, remove and recover storage devices."),
    "quarantine": ("quarantine:quarantine", "List and release segments that late writes could still reach."),
    "volume": ("volume:volume", "Create, list, change and delete volumes."),
    "mount": ("mount:mount", "Mount a volume on a directory."),
    "mount-pyfuse3": ("processes.mount_pyfuse3:mount_pyfuse3", "Mount a volume through libfuse, served by this process."),
    "umount": ("mount:umount", "Write everything to storage and unmount."),
    "flush": ("mount:flush", "Write the buffered data of a mount to storage."),
    "fsck": ("fsck:fsck", "Check and repair the metadata and devices of a stopped node."),
    "scrub": ("scrub:scrub", "Verify all stored data while mounts are in use."),
    "meta": ("meta:meta", "Back up, restore, dump and load the metadata."),
    "upgrade": ("upgrade:upgrade", "Follow and finish a rolling upgrade."),
    "kubernetes": ("kubernetes:kubernetes", "Run what a cluster in Kubernetes needs beside the pods of its nodes."),
    "probe": ("processes.probe:probe", "Check whether the daemon of this node answers."),
    "log": ("log:log", "Print the changes of the metadata as they are committed."),
    "ui": ("looking.ui:ui", "Serve a web page that shows this node and its cluster."),
    "events": ("looking.events:events", "Print who did what to the cluster, and wait for more."),
    "config": ("config:config", "Show and check the configuration."),
    "self-check": ("self_check:self_check", "Check that this program works on this host."),
    "completion": ("completion:completion", "Print the script that completes commands in a shell."),
    "version": ("version:version", "Show the version of the program and of its formats."),
    "mount-helper": ("processes.mount_helper:mount_helper", "Run by /sbin/mount.awsomefs."),
    "check-copy": ("processes.check_copy:check_copy", "Check a copy of the metadata store (run by scrub)."),
    "umount-helper": ("processes.mount_helper:umount_helper", "Run by /sbin/umount.fuse.awsomefs."),
}
UNFINISHED = {  # in no list and no help: what they are part of is not complete
    "pool": ("looking.pool:pool", "Look at the pool of node-local storage, and say how it heals."),
    "segments": ("processes.segments:segments", "Serve this node's devices of pools."),
    "store": ("objects.store:store", "Add, list, change, check and detach stores of objects."),
    "store-work": ("objects.store_work:store_work", "Do a job at a store (run by the daemon)."),
}
HELP = """Turn the storage of Linux machines into one POSIX filesystem.

Most commands ask the daemon of this node, which `awsomefsd run` starts.  `awsomefsd COMMAND --help` explains a command.
"""
STATUSES = {
    OK: "done",
    ERROR: "error; the message says what is wrong and what to do",
    USAGE: "wrong usage",
    DEGRADED: "status, doctor, scrub status: something needs attention",
    WOULD_LOSE_DATA: "refused because data would be lost",
    INTERRUPTED: "interrupted",
}
HIDDEN = frozenset({"mount-helper", "umount-helper", "check-copy"})


class Invocation:
    """The settings and the client of the daemon that a command needs; each is made when it is first used."""

    def __init__(self) -> None:
        self.state_dir: Path | None = None
        self.run_dir: Path | None = None
        self.config_file: Path | None = None
        self._settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The settings of the node, loaded at the first use.  Raises ConfigError."""
        if self._settings is None:
            from awsomefsd.config import settings

            self._settings = settings.load(self.config_file, state_dir=self.state_dir, run_dir=self.run_dir)
        return self._settings

    def client(self) -> AdminClient:
        """Returns a client that is connected to the daemon.  Raises Unavailable, Refused or ConfigError; the message says what to do."""
        from awsomefsd.admin.client import AdminClient
        from awsomefsd.cli.waiting import LongWork

        return AdminClient(self.settings.admin_socket, lambda rpc: LongWork(f"waiting for the daemon ({rpc})"))


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value is not None:
        setattr(context.ensure_object(Invocation), str(parameter.name), Path(value).absolute())
    return value


class GivenPath(click.Path):
    """A path that is not empty: an empty one would be the directory that somebody happens to be in.

    It is not looked at, which click would do: on a network that is gone that hangs, and `doctor` is there to say so.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; write one, or leave the option out", param, ctx)
        return Path(value)


def _global_options() -> list[click.Parameter]:
    path = GivenPath(path_type=Path)
    return [
        click.Option(
            ["--state-dir"],
            type=path,
            expose_value=False,
            callback=_keep,
            help="Directory with the state of this node [/var/lib/awsomefsd].",
        ),
        click.Option(
            ["--run-dir"], type=path, expose_value=False, callback=_keep, help="Directory with the sockets of this node [/run/awsomefsd]."
        ),
        click.Option(
            ["--config", "config_file"],
            type=path,
            expose_value=False,
            callback=_keep,
            help="Configuration file, TOML or YAML [/etc/awsomefsd/awsomefsd.toml].",
        ),
    ]


def first_sentence(command: click.Command) -> str:
    """Returns the first paragraph of the help of a command, in one line."""
    return " ".join((command.help or "").strip().split("\n\n")[0].split())


class CliCommand(click.Command):
    """A command that takes the global options too, so that they may come before or after its name."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params += _global_options()


class CliGroup(click.Group):
    """A group whose commands take the global options.  Its help shows the first sentence of each command, whole."""

    command_class = CliCommand

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, first_sentence(command)) for name, command in commands if command is not None and not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class LazyGroup(click.Group):
    """The top-level group; it imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS and cmd_name not in UNFINISHED:
            return None
        module, _, attribute = (COMMANDS.get(cmd_name) or UNFINISHED[cmd_name])[0].partition(":")
        command = getattr(importlib.import_module(f"awsomefsd.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in COMMANDS and name not in UNFINISHED and not name.startswith("-"):
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
    help=HELP,
    epilog="\b\nExit status:\n" + "\n".join(f"  {status:<4} {meaning}" for status, meaning in STATUSES.items()),
    params=[
        *_global_options(),
        click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def run(words: list[str]) -> int:
    """Runs a command line and returns the exit status; errors are printed on stderr, and none is raised."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its notes of ended connections are no news, and go to people's terminals
    if shell := os.environ.get(COMPLETE_VARIABLE):
        return _complete(shell)
    try:
        result = cli.main(args=words, prog_name="awsomefsd", standalone_mode=False, obj=Invocation())
        return result if isinstance(result, int) else OK
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as err:
        _show(err)
        return err.exit_code  # USAGE or ERROR; the mount helpers have their own
    except (click.Abort, KeyboardInterrupt):
        return _say(INTERRUPTED, "interrupted")
    except errors.WouldLoseData as err:
        return _say(WOULD_LOSE_DATA, str(err))
    except errors.ConfigError as err:
        return _say(ERROR, *err.lines)
    except errors.Error as err:
        return _say(ERROR, str(err))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has ended
        return ERROR
    except UnicodeEncodeError as err:
        if err.reason != "surrogates not allowed":
            return _say_unexpected(err)
        return _say(ERROR, f"{err.object} is no UTF-8; what is sent to the daemon has to be")
    except Exception as err:
        return _say_unexpected(err)


def _complete(instruction: str) -> int:
    """Answers the script of `awsomefsd completion`, which asks by the environment what may come next."""
    from click.shell_completion import shell_complete

    return shell_complete(cli, {"obj": Invocation()}, "awsomefsd", COMPLETE_VARIABLE, instruction)


def _show(err: click.ClickException) -> None:
    """Prints wrong usage.  What the user typed stays in its line; the lines of a help, and of what may be chosen, are click's."""
    from awsomefsd.base.log import printable

    if not isinstance(err, (click.MissingParameter, click.exceptions.NoArgsIsHelpError)):
        err.message = printable(err.message)  # type: ignore[misc]  # there is no other way into the text that `show` makes
    err.show()


def _say(code: int, *lines: str) -> int:
    from awsomefsd.base.log import printable

    _raise_in_debug()
    shown = "\n".join(map(printable, lines))  # others chose names in it
    click.echo(f"awsomefsd: {shown}", err=True)
    return code


def _say_unexpected(err: Exception) -> int:
    if isinstance(err, OSError):
        return _say(ERROR, f"{err.filename or 'system call'}: {err.strerror or err}")
    return _say(ERROR, f"a bug: {type(err).__name__}: {err}; run the command again with AWSOMEFSD_DEBUG=1 and report the output")


def _raise_in_debug() -> None:
    if os.environ.get("AWSOMEFSD_DEBUG"):
        import traceback

        traceback.print_exc()
