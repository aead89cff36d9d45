"""Where the trial lives, the processes that it starts, and how all of it goes away again.

Layout of D (`build/kubernetes` of the checkout): `bin`, `gopath`, `gocache`, `module`, `images` are kept between runs; `run` is one
run: logs, certificates, the nodes' directories, the device.  Every process inherits D/run in its environment (procs.MARK), so what a
run that was killed has left is found without any memory; a node's processes are in a pid namespace, and end with its process 1.

The machine's network is untouched: netns.Network has the three nodes, and the control plane lives in its hub, which has the address
that Kubernetes' own service is reached at; so no kube-proxy is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from buildtools import loops, netns, procs
from buildtools.say import CHECKOUT, BuildError

CACHE = CHECKOUT / "build" / "kubernetes"
OWN = Path(__file__).parent / "programs"
NODES = 3
LATER = "kn4"  # a machine that is there from the beginning and joins in one of the lives
ROLE = "AWSOMEFS_KUBERNETES_ROLE"
CGROUPS = Path("/sys/fs/cgroup")
SERVICE = "10.96.0.1"  # of the API server, by Kubernetes' own rule the first address of --service-cluster-ip-range
HUB = netns.GATEWAY
KUBELET = "/var/lib/kubelet"
GONE_S = 30.0


def await_true(what: str, test: Callable[[], bool], timeout_s: float, each_s: float = 0.5) -> float:
    """Seconds until `test` holds; BuildError when it does not within `timeout_s`.  Nothing here has an event to wait for."""
    began = time.monotonic()
    while not test():
        if time.monotonic() - began > timeout_s:
            raise BuildError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(each_s)
    return time.monotonic() - began


class Rig:
    """One trial; `destroy` may be called at any time and again, also for what another process has left."""

    def __init__(self, cache: Path = CACHE) -> None:
        self.cache = cache
        self.place = cache / "run"
        self.bin = cache / "bin"
        self.logs = self.place / "logs"
        self.network = netns.Network(self.place, NODES + 1)
        self.children: list[subprocess.Popen[bytes]] = []

    # --- places ---------------------------------------------------------------------------------------------------------------
    def names(self) -> list[str]:
        return [f"kn{number}" for number in range(1, NODES + 1)]

    def all_names(self) -> list[str]:
        return [*self.names(), LATER]

    def address(self, name: str) -> str:
        return self.network.address(int(name[2:]))

    def node_place(self, name: str) -> Path:
        return self.place / name

    @property
    def kubeconfig(self) -> Path:
        return self.place / "pki" / "admin.conf"

    @property
    def device_image(self) -> Path:
        return self.place / "device.img"

    def cgroup(self, name: str) -> str:
        return f"{self.network.namespace(int(name[2:]))}"

    # --- processes ------------------------------------------------------------------------------------------------------------
    def environment(self, role: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
        path = f"{self.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        kept = {"PATH": path, "HOME": str(self.place), "LC_ALL": "C.UTF-8", procs.MARK: str(self.place), ROLE: role}
        return kept | dict(more or {})

    def spawn(self, role: str, argv: Sequence[str | Path], more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A process that goes on; what it says is appended to logs/ROLE.log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{role.replace('/', '-')}.log").open("ab") as log:
            words = ["nice", "-n", "5", *map(str, argv)]
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment(role, more), start_new_session=True, cwd="/"
            )
        self.children.append(child)
        return child

    def in_hub(self, *argv: str | Path) -> list[str]:
        return [*self.network.entering_hub(), *map(str, argv)]

    def of_role(self, role: str, program: str) -> list[int]:
        """The processes of this role (and what they started) that run this program."""
        found = []
        for pid in procs.owned(str(self.place)):
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue
            if f"{ROLE}={role}".encode() in environ and os.path.basename(os.fsdecode(command)) == program:
                found.append(pid)
        return found

    def take(self) -> TextIO:
        """Locks the place until the file that is returned is closed; BuildError while another trial has it."""
        self.cache.mkdir(parents=True, exist_ok=True)
        file = (self.cache / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BuildError(f"another build.py soak --kubernetes works in {self.cache}; wait for its end, or interrupt it") from None
        return file

    # --- the end --------------------------------------------------------------------------------------------------------------
    def destroy(self, keep_logs: bool = True) -> list[str]:
        """Everything of a run but its logs; returns what could not be removed, in words."""
        devices = self.loops_of_volumes()  # as long as their paths show whose they are
        left = self._end_processes()
        for device in devices:
            loops.detach(device)
        for device in loops.of_file(self.device_image):
            loops.detach(device)
        self.network.destroy()
        left += self._remove_cgroups()
        if self.place.exists():
            for entry in self.place.iterdir():
                if entry.name != "logs" or not keep_logs:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return left

    def _end_processes(self) -> list[str]:
        place = str(self.place)
        for _ in range(3):  # a process that forks meanwhile is found the second time
            if not (found := procs.owned(place)):
                break
            procs.kill(place, found, signal.SIGKILL)
            for child in self.children:
                if child.poll() is None and child.pid in found:
                    child.wait(GONE_S)
            procs.wait_gone(place, GONE_S / 3)
        return [f"process {pid}" for pid in procs.owned(place)]

    def loops_of_volumes(self, names: Iterable[str] = ()) -> list[str]:
        """Loop devices of block volumes on these nodes (default: all): on a real machine they die with its kernel.

        The kernel shows a path as the node has it; the volume's directory is below the node's place, so nobody else's device is meant.
        """
        places = [self.node_place(name) / "kubelet" for name in names or self.all_names()]
        found = []
        for device, path in shown().items():
            inside = path.removeprefix(f"{KUBELET}/")
            if inside != path and any((place / inside).parent.is_dir() for place in places):
                found.append(device)
        return sorted(found)

    def _remove_cgroups(self) -> list[str]:
        left = []
        bases = [base for base in (CGROUPS, *CGROUPS.iterdir()) if (base / "cgroup.procs").exists()]
        roots = [base / self.cgroup(name) for base in bases for name in self.all_names()]
        for root in roots:
            folders = [root, *(path for path in root.rglob("*") if path.is_dir())] if root.exists() else []
            for folder in sorted(folders, key=lambda path: -len(path.parts)):
                try:
                    folder.rmdir()
                except OSError as err:
                    left.append(f"{folder}: {err.strerror}")
        return left


def shown() -> dict[str, str]:
    """Every loop device that has a file, and its path as the kernel shows it."""
    found = {}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached meanwhile
            found[f"/dev/{backing.parts[3]}"] = backing.read_text().strip()
    return found


def cgroup_roots() -> list[Path]:
    """The root of each hierarchy of version 1, or the one of version 2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return sorted(path for path in CGROUPS.iterdir() if (path / "tasks").exists() and not path.is_symlink())
