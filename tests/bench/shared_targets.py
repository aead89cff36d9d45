"""Filesystems that three nodes mount at once, all on this machine: ours, MooseFS, GlusterFS, and ext4 as the machine's limit.

Each has three network namespaces of its own (buildtools/netns.py).  What is started carries the mark of its directory (buildtools/procs.py)
and is ended by that, also after a failure.  What compares and what does not:

- ours: metadata on three voters, every change on two of them before it is answered; data once, on one disk all nodes see;
- MooseFS: metadata in one master's memory, written out later; data once, on one chunk server, over TCP; fsync is not asked of its disk;
- GlusterFS: distributed over three bricks, each file once; bricks on the host's filesystem; no metadata server;
- ext4: one mount that three processes use: no coherence to pay for, the bound of disk and processors.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Protocol

from buildtools import netns, procs
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from buildtools.say import BuildError
from tests.bench.targets import Ext4, drop_caches
from tests.rigs.network_namespaces import found_static

OURS_BYTES = 16 << 30  # sparse; what is removed is not free at once
WAIT_S = 60.0
CLIENTS = 3


class SharedTarget(Protocol):
    name: str
    folders: list[Path]  # each node's view of the same

    def close(self) -> None: ...


class Ours:
    """One cluster; `remount` changes the options, and so the name."""

    def __init__(self) -> None:
        self.name = "shared"
        self.cluster = Cluster(Path(tempfile.mkdtemp(prefix="afs-bench-shared-")), CLIENTS, size_bytes=OURS_BYTES)
        self.folders = [node.mountpoint for node in self.cluster.nodes]
        try:
            self.cluster.prepare()
            self.cluster.share()
            found_static(self.cluster)
            self.cluster.launch()
            self.cluster.await_leader()
            for node in self.cluster.nodes:
                node.await_daemon()
            self.cluster.provision()
            self.cluster.mount()
        except BaseException:
            self.close()
            raise

    def remount(self, options: str) -> None:
        if options != self.name:
            self.cluster.umount()
            self.name = options
            for node in self.cluster.nodes:
                node.mount_options = options
            self.cluster.mount()

    def close(self) -> None:
        self.cluster.destroy()


class Local:
    """The machine's limit."""

    name = "ext4"

    def __init__(self) -> None:
        self._ext4 = Ext4()
        self.folders = [self._ext4.folder] * CLIENTS

    def close(self) -> None:
        self._ext4.close()


class _Foreign:
    """Programs of others, in namespaces, marked."""

    name = ""
    programs: tuple[str, ...] = ()

    def __init__(self) -> None:
        absent = [name for name in self.programs if shutil.which(name, path=netns.FOLDERS + ":/usr/bin:/bin") is None]
        if absent:
            raise BuildError(f"{', '.join(absent)} not installed")
        self.directory = Path(tempfile.mkdtemp(prefix="afs-bench-foreign-")).resolve()
        self.network = netns.Network(self.directory, CLIENTS)
        self.folders = [self.directory / f"mnt{number}" for number in range(1, CLIENTS + 1)]
        for folder in self.folders:
            folder.mkdir()
        try:
            self.network.make()
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        raise NotImplementedError

    def run(self, machine: int, *words: str | Path, timeout_s: float = WAIT_S) -> str:
        argv = [*self.network.entering(machine), *map(str, words)]
        env = dict(os.environ) | {procs.MARK: str(self.directory), "PATH": f"{os.environ.get('PATH', '')}:{netns.FOLDERS}"}
        with tempfile.TemporaryFile() as out:  # no pipe: what becomes a daemon would keep it open
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, timeout=timeout_s, check=False)
            out.seek(0)
            said = out.read().decode(errors="replace")
        if done.returncode:
            raise BuildError(f"{' '.join(map(str, words))} ended with {done.returncode}: {said.strip()[-600:]}")
        return said

    def await_mounts(self) -> None:
        for folder in self.folders:
            await_true(f"{self.name} on {folder}", lambda folder=folder: os.path.ismount(folder), WAIT_S, 0.1)

    def close(self) -> None:
        for folder in self.folders:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
        for _ in range(5):
            procs.kill(str(self.directory), procs.owned(str(self.directory)))
            if not procs.wait_gone(str(self.directory), 5):
                break
        with contextlib.suppress(BuildError):
            self.network.destroy()
        shutil.rmtree(self.directory, ignore_errors=True)


class Moose(_Foreign):
    name = "MooseFS"
    programs = ("mfsmaster", "mfschunkserver", "mfsmount", "mfssetgoal")

    def start(self) -> None:
        place, address = self.directory, self.network.address(1)
        for name in ("master", "chunks", "disk"):
            (place / name).mkdir()
        (place / "master" / "metadata.mfs").write_bytes(b"MFSM NEW")
        (place / "exports").write_text("* / rw,alldirs,admin,maproot=0:0\n* . rw\n")
        (place / "hdd").write_text(f"{place / 'disk'}\n")
        own = "WORKING_USER = root\nWORKING_GROUP = root\nLOCK_MEMORY = 0\nNICE_LEVEL = 0\n"
        (place / "master.cfg").write_text(f"{own}DATA_PATH = {place}/master\nEXPORTS_FILENAME = {place}/exports\n")
        rows = f"DATA_PATH = {place}/chunks\nHDD_CONF_FILENAME = {place}/hdd\nMASTER_HOST = {address}\n"
        (place / "chunks.cfg").write_text(own + rows)
        self.run(1, "mfsmaster", "-c", place / "master.cfg", "start")
        self.run(1, "mfschunkserver", "-c", place / "chunks.cfg", "start")
        for machine, folder in enumerate(self.folders, 1):
            self.run(machine, "mfsmount", folder, "-H", address, "-o", "mfsioretries=5")
        self.await_mounts()
        self.run(1, "mfssetgoal", "-r", "1", self.folders[0])

        def serves() -> bool:
            try:
                (self.folders[0] / "probe").write_bytes(b"x" * 4096)
            except OSError:
                return False
            return True

        await_true("a chunk server", serves, WAIT_S, 0.5)


class Gluster(_Foreign):
    name = "GlusterFS"
    programs = ("glusterd", "gluster", "glusterfs")

    def start(self) -> None:
        place, address = self.directory, self.network.address(1)
        hidden = {"lib": "/var/lib/glusterd", "run": "/run", "log": "/var/log/glusterfs"}
        # a mount namespace holds everybody's mounts, also after they were unmounted outside: their servers would never end
        steps = ["""awk '$3 ~ "^fuse" && $3 != "fusectl" {print $2}' /proc/self/mounts | xargs -r -n1 umount -i -l 2>/dev/null || true"""]
        for name, where in hidden.items():  # its fixed places are its own, in a mount namespace
            (place / name).mkdir()
            steps.append(f"mkdir -p {where} && mount --bind {place / name} {where}")
        (place / "run" / "gluster").mkdir()
        script = "; ".join([steps[0], " && ".join([*steps[1:], f"glusterd --pid-file={place}/pid --log-file={place}/log/glusterd.log"])])
        self.run(1, "unshare", "--mount", "--propagation", "private", "sh", "-c", script)
        pid = await_true("glusterd", lambda: (place / "pid").exists() and (place / "pid").read_text().strip(), WAIT_S, 0.1)
        bricks = [f"{address}:{place}/brick{number}" for number in range(CLIENTS)]
        inside = ("nsenter", f"--mount=/proc/{pid}/ns/mnt", "gluster", "--mode=script")

        def created() -> bool:
            try:
                self.run(1, *inside, "volume", "create", "bench", "transport", "tcp", *bricks, "force")
            except BuildError as err:
                if "already exists" in str(err):
                    return True
                self.why = str(err)
                return False
            return True

        await_true("a GlusterFS volume", created, WAIT_S, 0.5)
        self.run(1, *inside, "volume", "start", "bench")
        for machine, folder in enumerate(self.folders, 1):
            log = f"--log-file={place}/log/client{machine}.log"
            self.run(machine, "glusterfs", f"--volfile-server={address}", "--volfile-id=bench", log, folder)
        self.await_mounts()


__all__ = ["Gluster", "Local", "Moose", "Ours", "SharedTarget", "drop_caches"]
