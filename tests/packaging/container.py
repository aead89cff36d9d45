"""A Debian 12 with systemd as process 1, in namespaces (systemd-nspawn): where packages are installed for real.

The root is made once by debootstrap and kept (AWSOMEFSD_TEST_ROOT, else /var/tmp/awsomefsd-test-root); each container works on a copy.
Commands run inside by nsenter, because no machined is asked.  The end kills process 1, with which every process inside ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

BASE = Path(os.environ.get("AWSOMEFSD_TEST_ROOT", "/var/tmp/awsomefsd-test-root"))
INCLUDED = "systemd,systemd-sysv,dbus,fio,procps,iproute2,kmod,man-db"
TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container", "nsenter": "util-linux"}
BOOT_S = 120.0
# First in the script of a mount namespace: it has a copy of what others have mounted, whose volume would stay mounted as long as it lives.
WITHOUT_OTHERS = "umount -alt fuse.awsomefs 2>/dev/null || true; "
OOM_BYTES = 256 << 10  # less than a process of ours asks for in its next moment


def missing() -> str:
    """Why there can be no container here; "" if there can."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        return "needs root and /dev/fuse"
    lacking = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    return f"not installed: {' '.join(lacking)}" if lacking else ""


def memory_group() -> Path | None:
    """Where control groups with a limit of memory can be made, of version 1 or 2; None if nowhere."""
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        control = root / "cgroup.subtree_control"
        if (root / "memory.limit_in_bytes").exists() or (control.exists() and "memory" in control.read_text()):
            return root if os.access(root, os.W_OK) else None
    return None


def make_base() -> None:
    if (BASE / "usr/lib/systemd/systemd").exists():
        return
    argv = ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", "bookworm", str(BASE)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=1_800)


def until(what: str, check: Callable[[], bool], timeout_s: float = BOOT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)


def _is_init(pid: str) -> bool:
    with contextlib.suppress(OSError):
        rows = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
        return rows["NSpid"].split()[1:] == ["1"] and rows["Name"].strip() == "systemd"
    return False


class Container:
    """Booted when constructed; `close` leaves nothing.  `network` is a network namespace to stand in, else one without a network."""

    def __init__(self, directory: Path, network: Path | None = None) -> None:
        self.root = directory / "root"
        self._network = "--private-network" if network is None else f"--network-namespace-path={network}"
        self._machine = f"awsomefsd-test-{os.getpid()}-{directory.name}"
        self._log = (directory / "console.log").open("wb")
        make_base()
        subprocess.run(["cp", "-a", "--reflink=auto", str(BASE), str(self.root)], check=True)
        (self.root / "etc/machine-id").write_text("uninitialized\n")
        (self.root / "etc/hostname").unlink(missing_ok=True)  # the name of the machine instead
        waits = self.root / "etc/systemd/system/systemd-networkd-wait-online.service"  # two minutes where no network comes
        waits.symlink_to("/dev/null")
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.leader = 0
        self.boot()

    def boot(self) -> None:
        argv = [
            "systemd-nspawn", "-q", "-D", str(self.root), f"--machine={self._machine}", "--boot", "--console=pipe",
            "--register=no", "--keep-unit", "--bind=/dev/fuse", self._network, "--capability=all",
        ]  # fmt: skip
        self._nspawn = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True)
        until("process 1 of the container", self._find_leader)
        until("a booted system", lambda: self.run("systemctl", "is-system-running", check=False)[1].strip() in ("running", "degraded"))

    def _find_leader(self) -> bool:
        assert self._nspawn is not None and self._nspawn.poll() is None, "systemd-nspawn ended"
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        self.leader = next((int(pid) for pid in children if _is_init(pid)), 0)  # not the helper that starts it
        return self.leader > 0

    def argv(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.leader), "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *words]

    def run(self, *words: str, check: bool = True, timeout_s: float = 300) -> tuple[int, str]:
        """(exit status, what it said)."""
        done = subprocess.run(
            self.argv(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}: {done.stdout[-4000:]}"
        return done.returncode, done.stdout

    def shell(self, script: str, check: bool = True, timeout_s: float = 300) -> str:
        return self.run("sh", "-c", script, check=check, timeout_s=timeout_s)[1]

    def pid(self, unit: str) -> int:
        return int(self.run("systemctl", "show", "-P", "MainPID", unit)[1])

    def host_pid(self, pid: int) -> int:
        """What the host calls a process of the container."""
        space = os.readlink(f"/proc/{self.leader}/ns/pid")
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                numbers = re.search(r"^NSpid:.*\t(\d+)$", (path / "status").read_text(), re.M)
                if numbers and int(numbers.group(1)) == pid and os.readlink(path / "ns/pid") == space:
                    return int(path.name)
        raise AssertionError(f"no process {pid} in the container")

    def starve(self, pid: int, busy: Callable[[], object]) -> None:
        """The kernel kills this process for want of memory, when it did: it is in a control group that has next to none, and kept busy."""

        def killed() -> bool:
            busy()  # else it asks for no memory
            return re.search(r"^oom_kill [1-9]", (group / count).read_text(), re.M) is not None

        root = memory_group()
        assert root is not None
        group = root / f"afs-oom-{os.getpid()}-{pid}"
        group.mkdir()
        names = ("memory.max", "memory.events"), ("memory.limit_in_bytes", "memory.oom_control")
        limit, count = names[0 if (group / "memory.max").exists() else 1]
        try:
            (group / limit).write_text(str(OOM_BYTES))
            (group / "cgroup.procs").write_text(str(self.host_pid(pid)))
            until(f"the death of {pid}", killed)
            until("an empty group", lambda: not (group / "cgroup.procs").read_text())
        finally:
            group.rmdir()

    def power_off(self) -> None:
        """As `poweroff` does; returns when every process inside has ended."""
        assert self._nspawn is not None
        self.run("systemctl", "poweroff", check=False)
        self._nspawn.wait(180)
        self._nspawn = None

    def close(self) -> None:
        if self._nspawn is not None:
            if self.leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.leader, signal.SIGKILL)
            try:
                self._nspawn.wait(60)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
            self._nspawn = None
        self._log.close()
        shutil.rmtree(self.root, ignore_errors=True)
