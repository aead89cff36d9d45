"""A stock kernel and an initramfs for the virtual machine, without installing a kernel on this host.

The packages are downloaded by name with apt and unpacked into a directory; which modules a module needs is read from the modules
themselves (modules.dep is made at installation).  The initramfs is a cpio archive ("newc") written here: a static busybox, the modules,
and a script that mounts the host's root read-only over 9p and goes on there.
"""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

MODULES = (
    "virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "crc32c_generic", "ext4", "dm-mod", "dm-log-writes", "fuse", "loop",
)  # fmt: skip
INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for module in {modules}; do /bin/busybox insmod /modules/$module.ko || echo "guest: no module $module"; done
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 root /root || echo "guest: no root"
/bin/busybox mount -t devtmpfs dev /root/dev
/bin/busybox mkdir -p /root/dev/shm
/bin/busybox mount -t tmpfs shm /root/dev/shm
/bin/busybox mount -t proc proc /root/proc
/bin/busybox mount -t sysfs sys /root/sys
/bin/busybox mount -t tmpfs run /root/run
/bin/busybox mount -t tmpfs work {directory_in_root}
/bin/busybox ip link set lo up
echo "guest: booted"
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /bin/busybox chroot /root {command}
/bin/busybox poweroff -f
"""
UNPACK_S = 600


def _run(*argv: str, cwd: Path | None = None) -> str:
    """Skips the test where it fails: no apt, no network, no such package."""
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=UNPACK_S, check=False, stdin=subprocess.DEVNULL)
    except (FileNotFoundError, subprocess.TimeoutExpired) as err:
        pytest.skip(f"{argv[0]}: {err}")
    if done.returncode:
        pytest.skip(f"{shlex.join(argv)}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def need_programs(*names: str) -> None:
    absent = [name for name in names if shutil.which(name) is None and shutil.which(name, path="/usr/sbin:/sbin") is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")


def unpacked(directory: Path) -> Path:
    """A directory with /boot, /lib/modules and /bin/busybox in it."""
    need_programs("apt-get", "apt-cache", "dpkg-deb")
    found = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", "linux-image-amd64"))
    if found is None:
        pytest.skip("apt knows no linux-image-amd64")
    root = directory / "root"
    _run("apt-get", "download", found.group(1), "busybox-static", cwd=directory)
    for package in directory.glob("*.deb"):
        _run("dpkg-deb", "-x", str(package), str(root))
        package.unlink()
    return root


def image(root: Path) -> Path:
    return next((root / "boot").glob("vmlinuz-*"))


def _needs(module: Path) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return found.group(1).decode().split(",") if found is not None and found.group(1) else []


def in_order(root: Path, wanted: tuple[str, ...]) -> list[Path]:
    """The modules and all they need, each after what it needs; what is built in has no file."""
    files = {path.name.removesuffix(".ko").replace("-", "_"): path for path in (root / "lib" / "modules").rglob("*.ko")}
    order: dict[Path, None] = {}

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is not None and path not in order:
            for other in _needs(path):
                add(other)
            order[path] = None

    for name in wanted:
        add(name)
    return list(order)


def initramfs(root: Path, target: Path, command: list[str], directory: Path) -> None:
    """`directory` is a tmpfs in the guest; `command` runs with the host's root as its own."""
    modules = in_order(root, MODULES)
    script = INIT.format(
        modules=" ".join(path.stem for path in modules), directory_in_root=f"/root{directory}", command=shlex.join(command)
    )
    with target.open("wb") as out:
        number = 0

        def entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
            nonlocal number
            number += 1
            fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
            head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
            out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))

        for name in ("bin", "dev", "proc", "root", "modules"):
            entry(name, stat.S_IFDIR | 0o755)
        entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        entry("bin/busybox", stat.S_IFREG | 0o755, (root / "bin" / "busybox").read_bytes())
        for path in modules:
            entry(f"modules/{path.stem}.ko", stat.S_IFREG | 0o644, path.read_bytes())
        entry("init", stat.S_IFREG | 0o755, script.encode())
        entry("TRAILER!!!", 0)


def boot(root: Path, initrd: Path, drives: list[Path], console: Path, memory: str, timeout_s: float) -> str:
    """Run the machine until it turns itself off; what it said.  It is ended when this returns, also after a failure."""
    words = [
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-m",
        memory,
        "-smp",
        "2",
        "-nographic",
        "-no-reboot",
        "-nodefaults",
    ]
    words += ["-kernel", str(image(root)), "-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
    words += ["-serial", f"file:{console}", "-monitor", "none"]
    words += ["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]
    words += ["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]
    for number, drive in enumerate(drives):
        words += ["-drive", f"file={drive},format=raw,if=none,id=d{number},cache=unsafe", "-device", f"virtio-blk-pci,drive=d{number}"]
    machine = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said, _ = machine.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        said = b"the machine did not turn itself off in time"
    finally:
        machine.kill()
        machine.wait()
    return said.decode(errors="replace") + (console.read_text(errors="replace") if console.exists() else "")
