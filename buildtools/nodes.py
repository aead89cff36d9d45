"""One node in one directory: its processes, device, volume and mount; what `up`, `down`, the tests and the benchmark all stand on.

Layout of D: state, run, log, mnt, device.img, disk (a link to the loop device, so that another number after a reboot changes nothing),
env, and a marker file without which `down` refuses to delete.  Every method looks at what is there and repairs only what is missing,
so calling it again is harmless.  Crash window: whatever stops half way is found again by the marker in the environment of the
processes (procs.py), by the backing file of the loop device and by the mount table, so `destroy` needs no memory of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from buildtools import loops, procs
from buildtools.say import CHECKOUT, BuildError, warn

MARKER = ".awsomefs-node"
VOLUME = "demo"
START_S = 60.0
STOP_S = 60.0
FAULTS_SEEN_S = 0.05


def await_true(what: str, check: Callable[[], Any], timeout_s: float, pause_s: float = 0.01) -> Any:
    """The first true value of `check`; BuildError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise BuildError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(pause_s)


def program(python: str = sys.executable) -> list[str]:
    """What tests and demos run: the compiled program that AWSOMEFSD_BINARY names, else the checkout's."""
    named = os.environ.get("AWSOMEFSD_BINARY")
    if named:
        if not os.access(named, os.X_OK):
            raise BuildError(f"AWSOMEFSD_BINARY names {named}, which is no program")
        return [os.path.abspath(named)]
    own = CHECKOUT / ".venv" / "bin" / "awsomefsd"
    return [str(own)] if own.exists() else [python, "-m", "awsomefsd"]


class Node:
    """`pins` goes into AWSOMEFSD_FUSE_PINS; `use_loop` False takes the image file itself as the device; with `faults` its processes read
    the rules of `inject`."""

    def __init__(
        self,
        directory: Path,
        *,
        size_bytes: int = 8 << 30,
        pins: str = "",
        use_loop: bool | None = None,
        volume: str = VOLUME,
        faults: bool = False,
    ) -> None:
        self.directory = directory.resolve()  # as the mount table names it
        self.faults = self.directory / "faults" if faults else None  # what awsomefsd/daemon/injection.py reads
        self.state, self.run, self.log = (self.directory / name for name in ("state", "run", "log"))
        self.mountpoint = self.directory / "mnt"
        self.image, self.disk = self.directory / "device.img", self.directory / "disk"
        self.size_bytes = size_bytes
        self.pins = pins
        self.entering: list[str] = []  # stands before all its commands: into a network namespace (netns.py)
        self.settings: dict[str, str] = {}  # AWSOMEFSD_… of this node
        self.founds = True  # `launch` makes a cluster of one of a node without identity
        self.failpoints: Path | None = None  # a file made by failpoints.Control; read by processes that start
        self.use_loop = loops.usable() if use_loop is None else use_loop
        self.volume = volume
        self.shared = False  # its device is one that several nodes see
        self.names = ""  # when names of its volume are durable, as after --names
        self.mount_options = ""  # of `mount`, as after -O
        self.copies: list[int] = []  # pids of workers that serve only what other mount namespaces hold
        own = CHECKOUT / ".venv" / "bin"
        self.python = str(own / "python") if (own / "python").exists() else sys.executable
        self.program = program(self.python)

    # --- the CLI against this node ----------------------------------------------------------------------------------------
    @property
    def command(self) -> list[str]:
        return [*self.program, "--state-dir", str(self.state), "--run-dir", str(self.run)]

    def environment(self) -> dict[str, str]:
        """For CLI calls: no setting of the caller's shell may point at another node."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("AWSOMEFSD_") and key != procs.MARK}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHECKOUT), env.get("PYTHONPATH", "")]))
        if not self.entering:  # it stands alone: many of them run in one network
            env["AWSOMEFSD_CLUSTER_LISTEN"] = env["AWSOMEFSD_METADATA_LISTEN"] = ""
        if self.pins:
            env["AWSOMEFSD_FUSE_PINS"] = self.pins
        if self.failpoints is not None:
            env["AWSOMEFSD_FAILPOINTS_FILE"] = str(self.failpoints)
        return env | self.settings

    # --- faults on purpose ------------------------------------------------------------------------------------------------
    def inject(self, rules: str) -> None:
        """These faults and no others from now on; "" ends all."""
        assert self.faults is not None, "a node made with faults=True"
        new = self.faults.with_suffix(".new")
        new.write_text(rules)
        new.rename(self.faults)
        time.sleep(FAULTS_SEEN_S)  # its processes look by themselves; no event says that all have

    def fault_hits(self, seam: str = "") -> int:
        """How many faults were dealt out at a seam, or at all of them."""
        assert self.faults is not None, "a node made with faults=True"
        hits = self.faults.with_suffix(".hits")
        return sum(row.startswith(seam) for row in hits.read_text().splitlines()) if hits.exists() else 0

    def cli(self, *words: str, timeout_s: float = 60, accept: tuple[int, ...] = (0,), stdin: str = "") -> str:
        """Run one CLI command; its standard output.  An exit code that is not in `accept` is a BuildError with what it said."""
        argv = [*self.entering, *self.command, *words]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, env=self.environment(), input=stdin, check=False)
        except FileNotFoundError:
            raise BuildError(f"{argv[0]} is not there: python3 build.py up prepares it") from None
        except subprocess.TimeoutExpired:
            raise BuildError(f"awsomefsd {' '.join(words)}: no end within {timeout_s:.0f} s") from None
        if done.returncode not in accept:
            raise BuildError(f"awsomefsd {' '.join(words)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def cli_error(self, *words: str) -> str:
        """What a command says that must be refused."""
        argv = [*self.entering, *self.command, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=self.environment(), check=False)
        if not done.returncode:
            raise BuildError(f"awsomefsd {' '.join(words)} was not refused")
        return done.stderr

    def ask(self, *words: str, **kwargs: Any) -> Any:
        """A CLI command's JSON.  A status is one as well where something is wrong: a heartbeat that was late may be all."""
        if words[:1] == ("status",):
            kwargs.setdefault("accept", (0, 3))
        return json.loads(self.cli(*words, "-o", "json", **kwargs))

    # --- processes --------------------------------------------------------------------------------------------------------
    def pids(self, role: str) -> list[int]:
        return procs.pids(str(self.directory), role)

    def pid(self, role: str, timeout_s: float = START_S) -> int:
        return int(await_true(f"a {role} process", lambda: self.pids(role), timeout_s)[0])

    def kill(self, *roles: str) -> dict[str, int]:
        """SIGKILL one process of each role, together.  Returns role -> pid that was hit; a role that was not there is a BuildError."""
        wanted = {self.pid(role): role for role in roles}
        descriptors = {pid: os.pidfd_open(pid) for pid in wanted}
        try:
            for pid in wanted:
                signal.pidfd_send_signal(descriptors[pid], signal.SIGKILL)
        except ProcessLookupError:
            raise BuildError(f"one of {roles} was gone before it was killed") from None
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)
        return {role: pid for pid, role in wanted.items()}

    def replaced(self, role: str, old_pid: int, timeout_s: float = START_S) -> int:
        """The pid of the process that took the place of `old_pid`: the proof that a kill hit.

        A keeper has taken its place only when it holds the descriptor of the mount again: until then the worker is its only holder,
        and a kill of that one too is a machine's death for this mount.
        """

        def look() -> int:
            now = [pid for pid in self.pids(role) if pid != old_pid]
            if not now or procs.alive(old_pid) or (role == "keeper" and self.mounted() and not procs.holds(now[0], "/dev/fuse")):
                return 0
            return now[0]

        return int(await_true(f"a new {role} after {old_pid}", look, timeout_s, 0.005))

    def strike(self, roles: Sequence[str]) -> None:
        """SIGKILL one process of each role, and see that others have taken their place."""
        for role, pid in self.kill(*roles).items():
            self.replaced(role, pid)

    def kill_everything(self) -> list[int]:
        """As a machine's death: SIGKILL all, supervisor first so that it restarts nothing; returns the pids."""
        hit: list[int] = []
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            left = procs.owned(str(self.directory))
            if not left:
                return hit
            first = sorted(left, key=lambda pid: ("supervisor", "keeper", "forker", "worker", "daemon", "segments", "").index(left[pid]))
            hit += procs.kill(str(self.directory), {pid: left[pid] for pid in first})
            procs.wait_gone(str(self.directory), 0.2)
        raise BuildError(f"processes that SIGKILL does not end: {procs.owned(str(self.directory))}")

    # --- up ---------------------------------------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Directories and marker.  A directory with other people's files is refused."""
        if self.directory.exists() and any(self.directory.iterdir()) and not (self.directory / MARKER).exists():
            raise BuildError(f"{self.directory} is not empty and not one of ours (no {MARKER} in it); choose another --dir")
        for path in (self.directory, self.state, self.run, self.log):
            path.mkdir(parents=True, exist_ok=True)
        if not self.mounted():
            self.mountpoint.mkdir(exist_ok=True)
        (self.directory / MARKER).write_text("a node of awsomefsd; build.py down deletes this directory\n")

    def attach(self) -> Path:
        """The device: a loop device over the sparse image, or the image itself; the same name again after a reboot."""
        if not self.image.exists():
            with self.image.open("wb") as file:
                file.truncate(self.size_bytes)
        target = str(self.image)
        if self.use_loop:
            try:
                target = loops.attach(self.image)
            except BuildError as err:  # a loop driver that this container may not use
                warn(f"{err}; the file itself is the device")
                self.use_loop = False
        if not self.disk.is_symlink() or os.readlink(self.disk) != target:
            self.disk.unlink(missing_ok=True)
            self.disk.symlink_to(target)
        return self.disk

    def uuid(self) -> str:
        """Who it is in its cluster."""
        return str(json.loads((self.state / "node.json").read_text())["node"])

    def start(self) -> float:
        """The supervisor, which keeps keeper and daemon.  Returns the seconds until the daemon answered."""
        began = time.monotonic()
        self.launch()
        self.await_daemon()
        return time.monotonic() - began

    def launch(self) -> None:
        """`start` without the wait."""
        if self.founds and not (self.state / "node.json").exists():
            self.cli("init")
        if not self.pids("supervisor"):
            env = self.environment() | {procs.MARK: str(self.directory)}
            if self.faults is not None:
                env["AWSOMEFSD_FAULTS"] = str(self.faults)
            with (self.log / "supervisor.log").open("ab") as log:
                subprocess.Popen(
                    [*self.entering, *self.command, "supervise", "--log-dir", str(self.log)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=env,
                    cwd="/",
                    start_new_session=True,  # survives the terminal
                )

    def await_daemon(self, timeout_s: float = START_S) -> None:
        """Wait until the daemon answers the admin API."""

        def answers() -> bool:
            done = subprocess.run([*self.command, "status"], capture_output=True, env=self.environment(), timeout=START_S, check=False)
            return done.returncode in (0, 3)

        await_true("the admin socket", (self.run / "admin.sock").exists, timeout_s)
        await_true(f"an answering daemon (logs in {self.log})", answers, timeout_s)

    def provision(self) -> None:
        """Device and volume, each only if missing."""
        if not any(row["path"] for row in self.ask("device", "ls")):  # others may be in other nodes
            disk = self.attach()
            self.cli("device", "add", *(["--shared", os.path.realpath(disk)] if self.shared else [str(disk)]))
        if self.volume not in {row["name"] for row in self.ask("volume", "ls")}:
            self.cli("volume", "create", self.volume, *(["--names", self.names] if self.names else []))

    def mounted(self) -> bool:
        wanted = str(self.mountpoint).replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
        with open("/proc/self/mounts") as table:
            return any(row.split(" ")[1] == wanted for row in table)

    def mount(self, options: str | None = None) -> None:
        """With `options` instead of the node's own."""
        options = self.mount_options if options is None else options
        if self.mounted():
            try:
                os.stat(self.mountpoint)
                return
            except OSError:  # the keeper that held it is gone for good: the dead mount makes room
                self.detach_mount()
        self.mountpoint.mkdir(exist_ok=True)
        self.cli("mount", self.volume, str(self.mountpoint), *(["-O", options] if options else []))

    def up(self) -> None:
        self.prepare()
        self.attach()
        self.start()
        self.provision()
        self.mount()

    # --- down -------------------------------------------------------------------------------------------------------------
    def umount(self) -> None:
        if self.mounted():
            workers = len(self.pids("worker"))  # of further mounts of this node too
            done = self.ask("umount", str(self.mountpoint), timeout_s=180)
            await_true("the end of the mount", lambda: not self.mounted(), STOP_S)
            if done["detached"]:  # a container or another directory has it still, and is served
                served = {int(row["worker_pid"]) for row in self.ask("status")["mounts"]}
                self.copies = [pid for pid in self.pids("worker") if pid not in served]
            else:
                await_true("the end of the worker", lambda: len(self.pids("worker")) < max(workers, 1), STOP_S)

    def detach_mount(self) -> None:
        """Take the mount out of the tree whatever state it is in, past a helper in /sbin that may be of another installation."""
        for _ in range(8):
            if not self.mounted():
                return
            done = subprocess.run(["umount", "-i", "-l", str(self.mountpoint)], capture_output=True, text=True, check=False)
        raise BuildError(f"umount -l {self.mountpoint} does not end the mount: {done.stderr.strip()}")

    def further_mounts(self) -> list[str]:
        """Where else volumes of this node are mounted, as the daemon remembers it."""
        try:
            rows = json.loads((self.state / "mounts.json").read_text())["mounts"].values()
            return [str(row["directory"]) for row in rows if row["directory"] != str(self.mountpoint)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []

    def stop(self) -> None:
        """SIGTERM to the supervisor, which ends daemon and keeper; whatever stays after STOP_S is killed.

        Further mounts of the node lose their workers with that; they are flushed before, and the next daemon brings them back.
        """
        for place in self.further_mounts():
            with contextlib.suppress(BuildError):
                self.cli("flush", place, timeout_s=180)
        everything = procs.owned(str(self.directory))
        supervisors = {pid: role for pid, role in everything.items() if role == "supervisor"}
        procs.kill(str(self.directory), supervisors or everything, signal.SIGTERM)
        serve_on = self.copies  # until the last container ends
        if self.further_mounts() and not self.mounted():
            serve_on = self.pids("worker")  # as long as their mounts stand
        if serve_on:
            ended = ("supervisor", "daemon", "keeper")
            await_true("the end of supervisor, daemon and keeper", lambda: not any(self.pids(role) for role in ended), STOP_S)
            procs.kill(str(self.directory), dict.fromkeys(serve_on, "worker"))
            self.copies = []
        if procs.wait_gone(str(self.directory), STOP_S):
            self.kill_everything()

    def end(self) -> None:
        """Mounts and processes go, without a flush: what it would make durable is deleted next."""
        if not (self.directory / MARKER).exists():
            raise BuildError(f"{self.directory} is not one of ours (no {MARKER} in it): nothing was deleted")
        for place in self.further_mounts():
            subprocess.run(["umount", "-i", "-l", place], capture_output=True, check=False)
        self.detach_mount()
        self.kill_everything()

    def destroy(self) -> None:
        """Everything of this node goes: mount, processes, loop device, directory.  Never anything of another."""
        self.end()
        for device in loops.of_file(self.image):
            loops.detach(device)
        await_true("the loop device to go", lambda: not loops.of_file(self.image), STOP_S)
        with open("/proc/self/mounts") as table:
            left = [row.split(" ")[1] for row in table if row.split(" ")[1].startswith(f"{self.directory}/")]
        if left:
            raise BuildError(f"{', '.join(left)} still mounted: nothing was deleted; umount it and try again")
        shutil.rmtree(self.directory)

    # --- for scripts ------------------------------------------------------------------------------------------------------
    def env_rows(self) -> dict[str, list[str]]:
        """What D/env holds; all but MOUNT are commands of plain words: `$WORKER_PIDS` and `eval "$WORKER_PIDS"` both work."""
        program = [self.python, str(CHECKOUT / "buildtools" / "procs.py"), str(self.directory)]
        return {
            "AWSOMEFSD": self.command,
            "MOUNT": [str(self.mountpoint)],
            "WORKER_PIDS": [*program, "worker"],
            "DAEMON_PIDS": [*program, "daemon"],
        }

    def write_env(self) -> Path:
        """D/env: what scripts source."""
        return write_env(self.directory / "env", self.env_rows())


def write_env(path: Path, rows: dict[str, list[str]]) -> Path:
    """One variable a line; a single word stands as it is, several as a command that a shell splits again."""
    values = {name: words[0] if len(words) == 1 else shlex.join(words) for name, words in rows.items()}
    path.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()))
    return path
