"""The compiled program with the libraries of Ubuntu 22.04 (glibc 2.35) and nothing else, where their archive can be had.

glibc 2.34 itself, the floor, is in no archive that is in reach; that no newer symbol is asked for is read from every ELF (test_binary).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from buildtools import elf
from tests.packaging.container import WITHOUT_OTHERS
from tests.packaging.test_repository import apt

pytestmark = [pytest.mark.soak, pytest.mark.root]
PACKAGES = ("libc6", "libc-bin", "libstdc++6", "libgcc-s1", "zlib1g")
SCRIPT = """set -e; cd "$1"
mkdir -p proc tmp dev program; mount --bind "$2" program; mount -t proc proc proc
for name in null urandom fuse; do touch dev/$name; mount --bind /dev/$name dev/$name; done
exec chroot . /program/awsomefsd self-check -o json
"""


def test_on_ubuntu_22_04_s_libraries(program: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("unshare", "apt-get", "dpkg-deb")):
        pytest.skip("needs root, apt-get, dpkg-deb and unshare")
    home, root = tmp_path / "home", tmp_path / "root"
    (home / "etc/trusted.gpg.d").mkdir(parents=True)
    (home / "etc/sources.list").write_text("deb [trusted=yes] http://archive.ubuntu.com/ubuntu jammy main\n")
    if apt(home, "update").returncode or (got := apt(home, "download", *PACKAGES)).returncode:
        pytest.skip("the archive of Ubuntu cannot be had")
    debs = list(home.glob("*.deb"))
    assert len(debs) == len(PACKAGES), got.stdout
    for deb in debs:
        subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    for name in ("lib", "lib64"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    newest = max(elf.glibc(version) for _, version in elf.needs(root / "usr/lib/x86_64-linux-gnu/libstdc++.so.6").versions)
    assert newest < (2, 36), "these are older than Debian 12's"
    words = [str(root), str(program.parent)]
    argv = ["unshare", "--mount", "sh", "-c", WITHOUT_OTHERS + SCRIPT, "sh", *words]  # the mounts end with their namespace
    done = subprocess.run(argv, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, timeout=300, check=False)
    assert done.returncode == 0 and '"ok": true' in done.stdout, done.stdout + done.stderr
