"""What a fresh machine needs: one line for each thing that is missing, distribution packages, the venv.

Everything is looked at before it is installed, so a machine that has all of it needs no network and a second run takes no time.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from buildtools import loops
from buildtools.say import CHECKOUT, BuildError, good, run, step, warn

VENV = CHECKOUT / ".venv"
PYTHON = str(VENV / "bin" / "python")
STAMP = ".awsomefs-stamp"

# what is looked for -> (Debian package, Fedora and RHEL package, needed for `up`)
TOOLS = {
    "gcc": ("gcc", "gcc", True),
    "losetup": ("mount", "util-linux", True),
    "mountpoint": ("util-linux", "util-linux", True),
    "nsenter": ("util-linux", "util-linux", True),
    "ip": ("iproute2", "iproute", True),
    "nft": ("nftables", "nftables", False),
}
TEST_TOOLS = {
    "fusermount3": ("fuse3", "fuse3", False),
    "pkg-config": ("pkg-config", "pkgconf-pkg-config", False),
    "mkfs.ext4": ("e2fsprogs", "e2fsprogs", False),
    "git": ("git", "git", False),
    "make": ("make", "make", False),
    "rsync": ("rsync", "rsync", False),
    "setfacl": ("acl", "acl", False),
    "fio": ("fio", "fio", False),
    "strace": ("strace", "strace", False),
    "initdb": ("postgresql", "postgresql-server", False),
    "pg_amcheck": ("postgresql-client", "postgresql-contrib", False),
    "promtool": ("prometheus", "golang-github-prometheus", False),
}
SOAK_TOOLS = {  # of tests/crash/vm
    "qemu-system-x86_64": ("qemu-system-x86", "qemu-system-x86-core", False),
    "dmsetup": ("dmsetup", "device-mapper", False),
}
OTHERS = {  # for bench --shared: packages by one of the programs in them
    "mfsmaster": "moosefs-master",
    "mfschunkserver": "moosefs-chunkserver",
    "mfsmount": "moosefs-client",
    "glusterd": "glusterfs-server",
    "gluster": "glusterfs-cli",
    "glusterfs": "glusterfs-client",
}
KUBERNETES = {  # for soak --kubernetes: packages of Debian by a program in them
    "containerd": "containerd",
    "runc": "runc",
    "etcd": "etcd-server",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "busybox": "busybox-static",
    "openssl": "openssl",
    "fio": "fio",
}
OUT_OF_PATH = "/usr/lib/postgresql/*/bin"  # where Debian keeps some of them
POLICY = Path("/usr/sbin/policy-rc.d")  # Debian asks it before it starts a service
FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


def _which(name: str) -> str | None:
    return shutil.which(name, path=":".join([os.environ.get("PATH", ""), FOLDERS, *glob.glob(OUT_OF_PATH)]))


# --- the host -------------------------------------------------------------------------------------------------------------
def _has_namespaces() -> bool:
    unshare = _which("unshare")
    return unshare is not None and subprocess.run([unshare, "--net", "true"], capture_output=True, check=False).returncode == 0


def check_host() -> list[str]:
    """Says what is there; returns what stops `up`, each with its fix."""
    blockers = []
    if os.geteuid() == 0:
        good("root: may mount")
    else:
        blockers.append("not root: a mount needs it. Run: sudo python3 build.py up")
    if os.path.exists("/dev/fuse"):
        good("/dev/fuse")
    else:
        blockers.append("/dev/fuse is missing. Run: modprobe fuse (in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN)")
    if loops.usable():
        good("loop devices: the device will be a sparse file behind one, with direct I/O")
    else:
        warn("no loop driver (/dev/loop-control; modprobe loop brings it): the sparse file itself will be the device")
    if _has_namespaces():
        good("network namespaces: each of the three nodes gets one")
    else:
        blockers.append("no network namespaces: each node needs one. Be root; in a container: --cap-add SYS_ADMIN,NET_ADMIN")
    return blockers


def check_disk(directory: Path, needed_bytes: int) -> None:
    place = directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise BuildError(f"{place} has {free >> 20} MiB free, {needed_bytes >> 20} MiB are needed: choose another place with --dir")


# --- distribution packages ------------------------------------------------------------------------------------------------
def _compiles() -> bool:
    return os.path.exists("/usr/include/stdio.h")


def _venv_works() -> bool:
    return os.path.exists(PYTHON) or all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))


def missing_packages(tests: bool, soak: bool = False) -> tuple[list[str], list[str]]:
    """(needed, useful) packages of this distribution for what is not there."""
    column = 1 if _which("dnf") and not _which("apt-get") else 0
    needed: list[str] = []
    useful: list[str] = []
    for name, row in (TOOLS | (TEST_TOOLS if tests else {}) | (SOAK_TOOLS if soak else {})).items():
        if _which(name) is None:
            (needed if row[2] else useful).append(str(row[column]))
    if tests and not os.path.exists("/usr/include/fuse3/fuse.h"):
        useful.append(("libfuse3-dev", "fuse3-devel")[column])  # for the pyfuse3 adapter, as is pkg-config
    if not _compiles():
        needed.append(("libc6-dev", "glibc-devel")[column])
    if not _venv_works():
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        system = sys.executable == f"/usr/bin/python{version}" or os.path.realpath("/usr/bin/python3").endswith(f"python{version}")
        needed.append(("python3-venv" if system else f"python{version}-venv", f"python{version}")[column])
    return needed, useful


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Packages with a service are installed, and the service is not started."""
    own = not POLICY.exists()
    try:
        if own:
            POLICY.write_text("#!/bin/sh\nexit 101\n")
            POLICY.chmod(0o755)
        yield
    finally:
        if own:
            POLICY.unlink(missing_ok=True)


def _install(names: list[str]) -> str:
    """Try to install; "" or why not."""
    if _which("apt-get"):
        env = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
        commands = [["apt-get", "update", "-q"], ["apt-get", "install", "-yq", "--no-install-recommends", *names]]
    elif _which("dnf"):
        env, commands = dict(os.environ), [["dnf", "install", "-yq", *names]]
    else:
        return "no apt-get and no dnf here"
    problem = ""
    with _no_services() if _which("apt-get") else contextlib.nullcontext():
        for argv in commands:
            done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False, stdin=subprocess.DEVNULL)
            problem = "" if done.returncode == 0 else (done.stderr or done.stdout).strip()[-600:]
    return problem


def packages(tests: bool = False, soak: bool = False) -> None:
    needed, useful = missing_packages(tests, soak)
    if not needed and not useful:
        good("distribution packages: all there")
        return
    step(f"Installing {' '.join(needed + useful)}")
    problem = _install(needed + useful)
    needed, useful = missing_packages(tests, soak)
    if needed:
        raise BuildError(f"could not install {' '.join(needed)}; do it by hand and run this again. {problem}")
    if useful:
        warn(f"not installed: {' '.join(useful)} (this goes on without: some tests will be skipped)")


def others() -> None:
    """Filesystems that the benchmark runs beside ours, as Debian has them; without one of them it says so and goes on."""
    for kind in ("mfs", "gluster"):
        absent = [package for name, package in OTHERS.items() if name.startswith(kind) and _which(name) is None]
        if absent:
            step(f"Installing {' '.join(absent)}")
            problem = _install(absent) if _which("apt-get") else "no apt-get here"
            if problem:
                warn(f"not installed: {problem}")


def kubernetes() -> None:
    """What a node of Kubernetes is made of beside what is built; BuildError where it cannot be had."""

    def absent() -> list[str]:
        return [package for name, package in KUBERNETES.items() if not (os.path.exists(name) if "/" in name else _which(name))]

    if not (wanted := absent()):
        return
    step(f"Installing {' '.join(wanted)}")
    problem = _install(wanted) if _which("apt-get") else "no apt-get here"
    if still := absent():
        raise BuildError(f"could not install {' '.join(still)} (Debian's packages; do it by hand and run this again). {problem}")


# --- the venv -------------------------------------------------------------------------------------------------------------
def _stamp() -> str:
    """Names what the venv was made from: another pyproject or another place makes it stale."""
    text = (CHECKOUT / "pyproject.toml").read_bytes() + os.fsencode(CHECKOUT)
    return hashlib.sha256(text).hexdigest()


def _stamped() -> list[str]:
    try:
        return (VENV / STAMP).read_text().split()
    except OSError:
        return []


def has_test_extras() -> bool:
    return "test" in _stamped()[1:]


def venv_is_current(extras: bool = False) -> bool:
    stamped = _stamped()
    return os.path.exists(PYTHON) and stamped[:1] == [_stamp()] and (not extras or "test" in stamped[1:])


def _optional(extra: str) -> None:
    """An extra that needs a library this host may not have; its tests are skipped then."""
    try:
        run([PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", f"{CHECKOUT}[{extra}]"], what=extra, timeout_s=600)
    except BuildError:
        warn(f"not installed: {extra} (its tests will be skipped)")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Holds a lock of the checkout: two that prepare one .venv at the same time take it away from each other."""
    folder = os.open(CHECKOUT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warn("another build.py prepares .venv of this checkout; waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def venv(extras: bool = False) -> None:
    """.venv of the checkout with the project in it, editable; one process at a time."""
    with _alone():
        _venv(extras)


def _venv(extras: bool) -> None:
    if venv_is_current(extras):
        good(".venv is current")
        return
    if not VENV.resolve().is_relative_to(CHECKOUT.resolve()):
        raise BuildError(f"{VENV} leads to {VENV.resolve()}, which is not this checkout's, and nothing is installed there; remove the link")
    step("Preparing .venv" + (" with what the tests need" if extras else ""))
    if subprocess.run([PYTHON, "-c", "import pip"], capture_output=True, check=False).returncode if os.path.exists(PYTHON) else 1:
        shutil.rmtree(VENV, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(VENV)], what="making .venv")
    target = f"{CHECKOUT}[test]" if extras else str(CHECKOUT)
    install = [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", target]
    try:
        run(install, what="pip install", timeout_s=1800)
    except BuildError as first:
        try:  # offline, with everything already in the venv
            run([*install, "--no-build-isolation", "--no-index"], what="pip install without network")
        except BuildError:
            raise first from None
    if extras:
        _optional("pyfuse3")
    (VENV / STAMP).write_text(f"{_stamp()} {'test' if extras else ''}\n")
    good(".venv is ready")
