"""A user who is not root runs a node of its own: keeper, daemon, a file as the device, and mounts made by fusermount3."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools.nodes import Node
from buildtools.say import BuildError

pytestmark = pytest.mark.root  # to become somebody else
USER = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants a user that has a name
FUSE_CONF = Path("/etc/fuse.conf")


def as_user(*words: str | Path) -> list[str]:
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--", *map(str, words)]


def python() -> tuple[str, list[str]]:
    """An interpreter that USER can execute, and what it needs in its path: ours may lie in somebody's home directory."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        code = f"import sys; assert sys.version_info[:2] == {tuple(sys.version_info[:2])}"
        done = subprocess.run(as_user("sh", "-c", f'{candidate} -c "{code}"'), capture_output=True, check=False, cwd="/")
        if done.returncode == 0:
            return candidate, [] if candidate == sys.executable else [path for path in sys.path if path.endswith("site-packages")]
    return "", []


PYTHON, PACKAGES = python()


class UsersNode(Node):
    """Every command of this node is run by USER."""

    @property
    def command(self) -> list[str]:
        self.python, self.program = PYTHON, [PYTHON, "-m", "awsomefsd"]
        return as_user(*super().command)

    def environment(self) -> dict[str, str]:
        env = super().environment()
        return env | {"PYTHONPATH": os.pathsep.join([env["PYTHONPATH"], *PACKAGES])}

    def prepare(self) -> None:
        super().prepare()
        for path in (self.directory, *self.directory.iterdir()):
            os.chown(path, USER, USER)

    def attach(self) -> Path:
        disk = super().attach()
        os.chown(self.image, USER, USER)
        return disk


@pytest.fixture(scope="module")
def node(make_node, tmp_path_factory) -> Iterator[Node]:
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed (package fuse3)")
    if not PYTHON:
        pytest.skip(f"no Python {sys.version_info[:2]} that another user can run")
    made = UsersNode(make_node(up=False, use_loop=False).directory, size_bytes=2 << 30, use_loop=False)  # which is destroyed by that one
    made.prepare()
    mode = os.stat("/dev/fuse").st_mode
    os.chmod("/dev/fuse", mode | 0o666)  # as udev does; fusermount3 opens it as its caller
    try:
        made.up()
        yield made
    finally:
        os.chmod("/dev/fuse", mode)


def run(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(as_user(*words), capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
    return done


def test_nobody_of_this_node_is_root_and_it_serves(node):
    for role in ("supervisor", "keeper", "daemon", "worker"):
        assert os.stat(f"/proc/{node.pid(role)}").st_uid == USER, role
    place = node.mountpoint
    run("sh", "-c", f"echo hello > {place}/f && mkdir {place}/d && ln -s f {place}/d/l && cat {place}/f")
    listed = run("stat", "-c", "%u %g %F", place / "f").stdout
    assert listed == f"{USER} {USER} regular file\n"
    options = run("findmnt", "-no", "FSTYPE,OPTIONS", place).stdout
    assert "fuse.awsomefs" in options and {"nosuid", "nodev", f"user_id={USER}"} <= set(options.split()[-1].split(","))
    with pytest.raises(PermissionError):  # not even root may look in, without allow_other
        (place / "f").read_text()


def test_it_outlives_worker_and_keeper(node):
    place = node.mountpoint
    run("sh", "-c", f"echo one > {place}/kept")
    node.replaced("worker", node.kill("worker")["worker"])
    assert run("cat", place / "kept").stdout == "one\n"
    node.replaced("keeper", node.kill("keeper")["keeper"])
    run("sh", "-c", f"echo two >> {place}/kept")
    node.replaced("worker", node.kill("worker")["worker"])
    assert run("cat", place / "kept").stdout == "one\ntwo\n"


def test_what_only_root_may(node):
    place = node.mountpoint
    assert run("mknod", place / "null", "c", "1", "3", check=False).returncode != 0
    code = "import os, sys\ntry: os.setxattr(sys.argv[1], 'trusted.x', b'y')\nexcept PermissionError: print('EPERM')\n"
    code += "os.setxattr(sys.argv[1], 'user.x', b'y')"
    run("touch", place / "x")
    assert run(node.python, "-c", code, place / "x").stdout == "EPERM\n"
    run("mkfifo", place / "fifo")


def test_umount_busy_and_remount(node):
    place = node.mountpoint
    holder = subprocess.Popen(as_user("sleep", "60"), cwd="/", stdin=subprocess.PIPE)
    busy = subprocess.Popen(as_user("sh", "-c", f"exec 3< {place}; echo ready; exec sleep 60"), stdout=subprocess.PIPE, text=True)
    try:
        assert busy.stdout is not None and busy.stdout.readline() == "ready\n"
        with pytest.raises(BuildError, match="busy"):
            node.cli("umount", str(place))
    finally:
        for process in (busy, holder):
            process.kill()
            process.communicate()
    node.cli("umount", str(place))
    assert not node.mounted()
    for option, why in (("lazytime", "needs root"), ("uid=5", "needs root")):
        with pytest.raises(BuildError, match=why):
            node.cli("mount", node.volume, str(place), "-O", option)
    node.cli("mount", node.volume, str(place), "-O", "ro,noexec")
    assert run("touch", place / "y", check=False).returncode != 0
    node.cli("umount", str(place))
    node.cli("mount", node.volume, str(place))


@contextlib.contextmanager
def fuse_conf(text: str) -> Iterator[None]:
    before = FUSE_CONF.read_bytes() if FUSE_CONF.exists() else None
    try:
        FUSE_CONF.write_text(text)
        yield
    finally:
        if before is None:
            FUSE_CONF.unlink()
        else:
            FUSE_CONF.write_bytes(before)


def test_allow_other_needs_fuse_conf(node):
    place = node.mountpoint
    node.cli("umount", str(place))
    with fuse_conf(""), pytest.raises(BuildError, match="user_allow_other"):
        node.cli("mount", node.volume, str(place), "-O", "allow_other")
    with fuse_conf("user_allow_other\n"):
        node.cli("mount", node.volume, str(place), "-O", "allow_other")
    assert (place / "kept").read_text() == "one\ntwo\n", "root is somebody else here, and may come in now"
    node.cli("umount", str(place))
    node.cli("mount", node.volume, str(place))
