"""Programs that make, copy and read trees, on a mount: git, make with a compiler, rsync, tar, a container's root on an overlay."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential.sides import ext4
from tests.rigs.external_programs import killing_workers, need, picture, run

pytestmark = pytest.mark.root
COMMITS = 300
C_FILES = 60
SPARSE_BYTES = 64 << 20


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


# --- git --------------------------------------------------------------------------------------------------------------------------
def history(seed: int) -> bytes:
    """A stream for git fast-import: COMMITS commits that change some of 40 files each."""
    chooser = random.Random(seed)
    rows = []
    for number in range(COMMITS):
        rows.append(f"commit refs/heads/main\ncommitter A <a@example.org> {1_600_000_000 + number} +0000\ndata 2\nc\n".encode())
        for _ in range(3):
            data = chooser.randbytes(chooser.choice((10, 500, 20_000))).hex().encode()
            rows.append(b"M 100644 inline dir%d/file%d\ndata %d\n%s\n" % (chooser.randrange(5), chooser.randrange(8), len(data), data))
    return b"".join(rows)


def test_git(node, place, seed):
    """Import, clone over the pack protocol, commit, gc and fsck while workers are killed."""
    need("git")
    env = dict(os.environ) | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org"}
    env |= {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org"}

    def git(where: str, *words: str) -> str:
        return run("git", "-C", place / where, *words, env=env)

    run("git", "init", "-q", "--bare", "-b", "main", place / "origin", env=env)
    subprocess.run(["git", "-C", place / "origin", "fast-import", "--quiet"], input=history(seed), env=env, check=True, timeout=120)
    with killing_workers(node):
        run("git", "clone", "-q", f"file://{place}/origin", place / "clone", env=env)
        for number in range(10):
            (place / "clone" / f"new{number}").write_text(f"{number}\n" * 1000)
            git("clone", "add", "-A")
            git("clone", "commit", "-q", "-m", f"commit {number}")
        git("clone", "gc", "-q", "--prune=now")
        git("clone", "push", "-q", "origin", "main")
    for where in ("origin", "clone"):
        assert len(git(where, "rev-list", "main").split()) == COMMITS + 10
        git(where, "fsck", "--strict", "--full")
    assert git("clone", "status", "--porcelain") == ""


# --- a compiler -------------------------------------------------------------------------------------------------------------------
MAKEFILE = """
OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
\tcc -o $@ $(OBJECTS)
%.o: %.c all.h
\tcc -O1 -c -o $@ $<
"""


def test_a_c_project_with_make(place):
    """Built in parallel, run from the mount; a second make has nothing to do, a touched file is the only one built again."""
    need("make", "cc")
    (place / "all.h").write_text("".join(f"int f{n}(int);\n" for n in range(C_FILES)))
    for n in range(C_FILES):
        (place / f"f{n}.c").write_text(f'#include "all.h"\nint f{n}(int x) {{ return x + {n}; }}\n')
    calls = "".join(f"x = f{n}(x);" for n in range(C_FILES))
    (place / "main.c").write_text(f'#include <stdio.h>\n#include "all.h"\nint main(void) {{ int x = 0; {calls} printf("%d\\n", x); }}\n')
    (place / "Makefile").write_text(MAKEFILE)
    run("make", "-s", "-j4", "-C", place)
    assert run(place / "program") == f"{sum(range(C_FILES))}\n"
    assert "up to date" in run("make", "-C", place)
    os.utime(place / "f7.c")
    assert run("make", "-C", place).count("-c -o") == 1


# --- copies -----------------------------------------------------------------------------------------------------------------------
def plant(root: Path, seed: int) -> None:
    """Files of every kind."""
    chooser = random.Random(seed)
    root.mkdir()
    for n in range(40):
        folder = root / f"d{n % 4}" / f"e{n % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"file {n}"
        path.write_bytes(chooser.randbytes(chooser.choice((0, 1, 4096, 100_000))))
        os.chown(path, n, 1000 + n)
        os.chmod(path, chooser.choice((0o644, 0o600, 0o4755, 0o2711, 0)))
        os.setxattr(path, f"user.n{n}", chooser.randbytes(n))
        os.setxattr(path, "trusted.n", b"t")
        os.utime(path, ns=(n, chooser.randrange(10**18)))
        os.link(path, root / f"link{n}")
    os.symlink("d0/e0", root / "symlink")
    os.symlink("\udcff nowhere", root / "dangling")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "socket"))
    (root / ("n" * 255)).write_text("long")
    with open(root / "sparse", "wb") as file:
        for at in (0, SPARSE_BYTES // 2, SPARSE_BYTES - 5):
            file.seek(at)
            file.write(b"bytes")
    (root / "setgid").mkdir()
    os.chmod(root / "setgid", 0o3775)
    run("setfacl", "-m", "u:7:rw,g:8:r", root / "link3")
    run("setfacl", "-d", "-m", "u:9:rwx,g:10:rx", root / "setgid")


def check_copy(original: dict, copy: Path) -> None:
    found = picture(copy)
    assert found.keys() == original.keys()
    wrong = [f"{path}: {original[path]} became {found[path]}" for path in original if found[path] != original[path]]
    assert not wrong, "\n".join(wrong[:5])
    assert (copy / "sparse").stat().st_blocks * 512 < SPARSE_BYTES // 8, "the holes were filled"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Iterator[Path]:
    need("mkfs.ext4", "setfacl")
    with ext4(tmp_path_factory.mktemp("local")) as made:
        yield made


def test_rsync_there_and_back(place, local, seed):
    need("rsync")
    plant(local / "tree", seed)
    original = picture(local / "tree")
    sync = ("rsync", "-aHAXS", "--numeric-ids", "--modify-window=-1")  # compare times by the nanosecond
    run(*sync, f"{local}/tree/", f"{place}/copy/")
    check_copy(original, place / "copy")
    run(*sync, f"{place}/copy/", f"{local}/back/")
    check_copy(original, local / "back")
    assert run(*sync, "-ci", f"{local}/tree/", f"{place}/copy/") == "", "a second run found differences"


def test_tar_there_and_back(place, local, seed):
    need("tar")
    plant(place / "tree", seed)
    (place / "tree" / "socket").unlink()  # tar ignores sockets
    original = picture(place / "tree")
    keep = ("--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse")
    run("tar", *keep, "--format=posix", "-C", place / "tree", "-cf", place / "tree.tar", ".")
    for copy in (place / "copy", local / "untarred"):
        copy.mkdir()
        run("tar", *keep, "-xpf", place / "tree.tar", "-C", copy)
        check_copy(original, copy)


# --- a container ------------------------------------------------------------------------------------------------------------------
def minimal_root(root: Path) -> None:
    """A shell and a few tools with their libraries."""
    programs = [shutil.which(name) for name in ("sh", "cat", "ls", "rm", "mv", "mkdir")]
    needed = {word for program in programs for word in run("ldd", str(program)).split() if word.startswith("/")}
    for path in [*filter(None, programs), *needed]:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc" / "name").write_text("lower\n")


def test_a_container_on_an_overlay(place, tmp_path):
    """An overlay with its lower directory here; a shell in namespaces of its own lives in it."""
    need("unshare", "chroot", "ldd")
    minimal_root(place / "lower")
    before = picture(place / "lower")
    merged, memory = tmp_path / "merged", tmp_path / "memory"
    merged.mkdir()
    memory.mkdir()
    script = "cat /etc/name && mkdir /work && echo upper > /etc/name && mv /etc/name /work/name && cat /work/name && ls /etc && rm -r /work"
    mounts = (
        f"mount -t tmpfs none {memory} && mkdir {memory}/upper {memory}/work && "
        f"mount -t overlay none -o lowerdir={place}/lower,upperdir={memory}/upper,workdir={memory}/work {merged} && "
        f"exec chroot {merged} {shutil.which('sh')} -c '{script}'"
    )
    env = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    out = run("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "sh", "-c", mounts, env=env)
    assert out.split() == ["lower", "upper"]
    assert picture(place / "lower") == before
