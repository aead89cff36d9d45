"""Where it is measured: our mount, ext4 on the same kind of loop device, and a null FUSE server, the bound of what the interface allows."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Protocol

from buildtools import loops
from buildtools.nodes import Node, await_true
from buildtools.say import CHECKOUT, BuildError, run

SIZE_BYTES = 4 << 30


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Target(Protocol):
    name: str
    folder: Path

    def remount(self) -> None:
        """What is read next comes from the device."""

    def cpu_us(self) -> dict[str, float]:
        """What the processes that serve it have used so far, by name."""

    def close(self) -> None: ...


def cpu_us_of(pid: int) -> float:
    """What a process has used so far, with threads that ended: the load of the machine changes it less than the time that passes."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e3  # clock_getcpuclockid(3), which Python does not have


def write_out(image: Path) -> None:
    """Makes the image of a device: blocks that were never written cost whoever writes them first the allocation on the host."""
    with image.open("wb") as file:
        piece = bytes(1 << 20)
        for _ in range(SIZE_BYTES >> 20):
            file.write(piece)
        os.fsync(file.fileno())


class Ours:
    name = "awsomefs"

    def __init__(self, settings: dict[str, str] | None = None, names: str = "") -> None:
        """`names`: of the volume, if they are not as of new ones."""
        self.node = Node(Path(tempfile.mkdtemp(prefix="afs-bench-")), size_bytes=SIZE_BYTES)
        self.node.settings |= settings or {}
        self.folder = self.node.mountpoint
        try:
            self.node.prepare()
            write_out(self.node.image)
            self.node.up()
            if names:
                self.name = "awsomefs, durable names" if names == "durable" else self.name
                self.node.cli("volume", "set", self.node.volume, "--names", names)
                self.remount()
        except BaseException:
            self.close()
            raise

    def remount(self) -> None:
        self.node.umount()
        drop_caches()
        self.node.mount()

    def cpu_us(self) -> dict[str, float]:
        return {role: cpu_us_of(self.node.pid(role)) for role in ("worker", "daemon")}

    def close(self) -> None:
        if (self.node.directory / ".awsomefs-node").exists():
            self.node.destroy()
        shutil.rmtree(self.node.directory, ignore_errors=True)


class Ext4:
    name = "ext4"

    def __init__(self) -> None:
        if shutil.which("mkfs.ext4") is None or not loops.usable():
            raise BuildError("ext4 beside ours needs mkfs.ext4 (e2fsprogs) and a loop driver")
        self.directory = Path(tempfile.mkdtemp(prefix="afs-bench-ext4-"))
        self.folder = self.directory / "mnt"
        self.folder.mkdir()
        self.image = self.directory / "device.img"
        try:
            write_out(self.image)
            self.device = loops.attach(self.image)
            run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.device])
            run(["mount", self.device, self.folder])
        except BaseException:
            self.close()
            raise

    def remount(self) -> None:
        run(["umount", self.folder])
        drop_caches()
        run(["mount", self.device, self.folder])

    def cpu_us(self) -> dict[str, float]:
        return {}  # the kernel's work is its callers'

    def close(self) -> None:
        if os.path.ismount(self.folder):
            run(["umount", self.folder])
        for device in loops.of_file(self.image):
            loops.detach(device)
        shutil.rmtree(self.directory, ignore_errors=True)


class Null:
    """A FUSE server of ours that keeps nothing but names and sizes in memory."""

    name = "null FUSE"

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="afs-bench-null-"))
        self.folder = self.directory / "mnt"
        self.folder.mkdir()
        server = CHECKOUT / "tests" / "bench" / "nullserver.py"
        self.process = subprocess.Popen([sys.executable, str(server), str(self.folder)], env=os.environ | {"PYTHONPATH": str(CHECKOUT)})
        try:
            await_true("the null server's mount", self._mounted, 10)
        except BaseException:
            self.close()
            raise

    def _mounted(self) -> bool:
        if self.process.poll() is not None:
            raise BuildError(f"the null server ended with {self.process.returncode}")
        return os.path.ismount(self.folder)

    def remount(self) -> None:
        drop_caches()

    def cpu_us(self) -> dict[str, float]:
        return {"server": cpu_us_of(self.process.pid)}

    def close(self) -> None:
        if os.path.ismount(self.folder):
            subprocess.run(["umount", str(self.folder)], capture_output=True, check=False)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)
