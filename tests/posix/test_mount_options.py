"""Mount options on real mounts: what they forbid, who one is behind them; the helpers of mount(8); bind mounts; overlayfs on top."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildtools.nodes import Node

pytestmark = pytest.mark.root
SBIN = Path(__file__).resolve().parents[2] / "packaging" / "sbin"
NOBODY = 65_534


@pytest.fixture(scope="module")
def node(make_node) -> Node:
    return make_node()


Mount = Callable[..., Path]


@pytest.fixture
def mount(node, request) -> Iterator[Mount]:
    """A new volume, mounted with options; at the end of the test unmounted and deleted."""
    made: list[tuple[str, Path]] = []

    def make(options: str) -> Path:
        volume = "".join(c if c.isalnum() else "-" for c in f"{request.node.name[-40:]}-{len(made)}").lstrip("-")
        place = node.directory / volume
        place.mkdir()
        node.cli("volume", "create", volume)
        made.append((volume, place))
        node.cli("mount", volume, str(place), *(["-O", options] if options else []))
        return place

    yield make
    for volume, place in reversed(made):
        if os.path.ismount(place):
            node.cli("umount", str(place))
        node.cli("volume", "delete", volume, "--force", "--yes-destroy", volume)


def remount(node: Node, place: Path, options: str) -> None:
    node.cli("umount", str(place))
    node.cli("mount", place.name, str(place), *(["-O", options] if options else []))


def run(*words: str | Path, check: bool = True, **kwargs) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=60, **kwargs)
    assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
    return done


def python(code: str, *args: str | Path, user: int = 0, group: int | None = None, groups: tuple[int, ...] = ()) -> str:
    """What `code` prints as that user; the name of the errno where it fails with one."""
    wrapped = "import errno, os, stat, sys\ntry:\n" + "".join(f"    {row}\n" for row in code.splitlines())
    wrapped += "except OSError as err: print(errno.errorcode[err.errno])\n"
    ids = {"user": user, "group": user if group is None else group, "extra_groups": list(groups)}
    done = run("/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable, "-c", wrapped, *args, cwd="/", **ids)
    return done.stdout.strip()


def entered(node: Node) -> None:
    node.directory.chmod(0o755)


def fails(code: int):
    return pytest.raises(OSError, match=rf"\[Errno {code}\]")


# --- flags --------------------------------------------------------------------------------------------------------------------
def test_ro_noexec_nosuid_nodev(node, mount):
    entered(node)
    place = mount("")
    shutil.copy("/usr/bin/id", place / "id")
    (place / "id").chmod(0o4755)
    os.mknod(place / "null", 0o020666, os.makedev(1, 3))
    assert run(place / "id", "-u", user=12345).stdout.strip() == "0", "setuid works without the option"
    (place / "null").write_bytes(b"x")
    remount(node, place, "nosuid,nodev")
    assert run(place / "id", "-u", user=12345).stdout.strip() == "12345"
    with fails(errno.EACCES):
        (place / "null").read_bytes()
    remount(node, place, "noexec,ro,noatime")
    with fails(errno.EACCES):
        subprocess.run([place / "id"], check=True)
    for change in (lambda: (place / "new").touch(), lambda: (place / "id").chmod(0o755), lambda: os.truncate(place / "id", 0)):
        with fails(errno.EROFS):
            change()
    said = run("findmnt", "-no", "FSTYPE,SOURCE,OPTIONS", place).stdout
    assert "fuse.awsomefs" in said and place.name in said and {"ro", "noexec", "noatime"} <= set(said.split()[-1].split(","))


def test_remount_read_only_and_back(node, mount):
    place = mount("")
    (place / "f").write_text("x")
    run("mount", "-i", "-o", "remount,ro", place)
    with fails(errno.EROFS):
        (place / "g").touch()
    node.replaced("worker", _kill_worker(node, place))
    with fails(errno.EROFS):
        (place / "g").touch()
    run("mount", "-i", "-o", "remount,rw", place)
    (place / "g").write_text("y")
    assert (place / "f").read_text() == "x"


def _kill_worker(node: Node, place: Path) -> int:
    (pid,) = [row["worker_pid"] for row in node.ask("status")["mounts"] if row["directory"] == str(place)]
    os.kill(int(pid), 9)
    return int(pid)


@pytest.mark.parametrize("option", ["map_uid=1:2", "map_gid=0:0:0", "nosiud", "root_squash=yes", "readahead=1T"])
def test_a_bad_option_is_named_and_nothing_is_mounted(node, option):
    place = node.directory / "bad"
    place.mkdir(exist_ok=True)
    done = run(*node.command, "mount", node.volume, place, "-O", option, check=False, env=node.environment())
    assert done.returncode != 0 and option in done.stderr and not os.path.ismount(place)


# --- who one is -----------------------------------------------------------------------------------------------------------------
def test_root_squash(node, mount):
    entered(node)
    place = mount("")
    (place / "public").mkdir(mode=0o777)
    (place / "public").chmod(0o1777)
    (place / "secret").mkdir(mode=0o700)
    (place / "secret" / "f").write_text("secret")
    (place / "readable").write_text("all may read")
    (place / "closed").write_text("closed")
    (place / "closed").chmod(0o600)
    (place / "public" / "of-7").write_text("7")
    os.chown(place / "public" / "of-7", 7, 7)
    os.chown(place / "closed", 7, 7)
    remount(node, place, "root_squash")
    public = place / "public"
    assert (place / "readable").read_text() == "all may read"
    (public / "mine").write_text("x")
    assert (os.stat(public / "mine").st_uid, os.stat(public / "mine").st_gid) == (NOBODY, NOBODY)
    (public / "mine").chmod(0o640)
    os.rename(public / "mine", public / "still-mine")
    (public / "dir").mkdir()
    for code, refused in (
        (errno.EACCES, lambda: (place / "secret" / "f").read_text()),
        (errno.EACCES, lambda: os.stat(place / "secret" / "f")),
        (errno.EACCES, lambda: os.listdir(place / "secret")),
        (errno.EACCES, lambda: (place / "closed").read_text()),
        (errno.EACCES, lambda: (place / "readable").open("a")),
        (errno.EACCES, lambda: os.truncate(place / "readable", 0)),
        (errno.EACCES, lambda: (place / "new").touch()),
        (errno.EACCES, lambda: (place / "new").mkdir()),
        (errno.EACCES, lambda: os.unlink(place / "readable")),
        (errno.EPERM, lambda: os.unlink(public / "of-7")),
        (errno.EPERM, lambda: os.rename(public / "of-7", public / "x")),
        (errno.EPERM, lambda: os.chown(public / "still-mine", 0, 0)),
        (errno.EPERM, lambda: os.chmod(place / "readable", 0o777)),
        (errno.EPERM, lambda: os.utime(place / "readable", (1, 1))),
        (errno.EPERM, lambda: os.mknod(public / "dev", 0o020666, os.makedev(1, 3))),
        (errno.EPERM, lambda: os.setxattr(public / "still-mine", "trusted.x", b"y")),
        (errno.EACCES, lambda: os.setxattr(place / "readable", "user.x", b"y")),
    ):
        with fails(code):
            refused()
    assert python("print(open(sys.argv[1]).read())", place / "closed", user=7) == "closed", "others are who they are"
    assert python("open(sys.argv[1])", place / "closed", user=8) == "EACCES"
    node.replaced("worker", _kill_worker(node, place))
    with fails(errno.EACCES):
        (place / "closed").read_text()


def test_mapped_ids(node, mount):
    entered(node)
    place = mount("")
    (place / "old").write_text("of nobody here")  # root inside
    (place / "shared").mkdir()
    os.chown(place / "shared", 101_000, 101_000)
    remount(node, place, "map_uid=0:100000:2000,map_gid=0:100000:2000")
    shared = place / "shared"
    assert (os.stat(shared).st_uid, os.stat(shared).st_gid) == (1000, 1000)
    assert os.stat(place / "old").st_uid == NOBODY
    assert python("open(sys.argv[1], 'w').write('x')\nprint(os.stat(sys.argv[1]).st_uid)", shared / "f", user=1000) == "1000"
    assert python("os.mkdir(sys.argv[1])", shared / "d", user=5000) == "EACCES"
    shared.chmod(0o777)
    assert python("os.mkdir(sys.argv[1])", shared / "d", user=5000) == "EOVERFLOW"
    os.chown(shared / "f", 7, 8)
    with fails(errno.EOVERFLOW):
        os.chown(shared / "f", 5000, -1)
    with fails(errno.EACCES):
        (place / "old").open("a")
    with fails(errno.EOVERFLOW):
        (place / "old").chmod(0o600)
    assert sorted((entry.name, entry.stat().st_uid) for entry in os.scandir(place)) == [("old", NOBODY), ("shared", 1000)]
    remount(node, place, "")
    assert (os.stat(shared / "f").st_uid, os.stat(shared / "f").st_gid) == (100_007, 100_008)


def test_the_worker_checks_modes_where_the_kernel_does_not(node, mount):
    entered(node)
    place = mount("nodefault_permissions")
    (place / "group").write_text("group")
    (place / "group").chmod(0o640)
    os.chown(place / "group", 7, 50)
    read = "print(open(sys.argv[1]).read())"
    assert python(read, place / "group", user=7) == python(read, place / "group", user=9, groups=(50,)) == "group"
    assert python(read, place / "group", user=9) == "EACCES"
    assert python("open(sys.argv[1], 'a')", place / "group", user=9, groups=(50,)) == "EACCES"
    assert python("open(sys.argv[1], 'w')", place / "new", user=9) == "EACCES"
    assert (place / "group").read_text() == "group"


# --- ACLs behind such mounts ----------------------------------------------------------------------------------------------------
def access_acl(place: Path, entries: str) -> None:
    run("setfacl", "-m", entries, place)


def prepare_acls(place: Path) -> None:
    """`named` is 7's and lets 9 and group 60 read, `dir` lets 9 make files; everybody else is shut out."""
    (place / "named").write_text("for some")
    (place / "dir").mkdir(mode=0o700)
    (place / "dir" / "f").write_text("inside")
    (place / "dir" / "f").chmod(0o644)
    os.chown(place / "named", 7, 7)
    (place / "named").chmod(0o600)
    access_acl(place / "named", f"u:9:r,g:60:r,u:{NOBODY}:r")
    access_acl(place / "dir", f"u:9:rwx,u:{NOBODY}:rwx")


READ = "print(open(sys.argv[1]).read())"
APPEND = "open(sys.argv[1], 'a').close()\nprint('ok')"
MAKE = "os.mkdir(sys.argv[1])\nprint('ok')"


def test_access_acls_where_the_worker_checks(node, mount):
    entered(node)
    place = mount("nodefault_permissions")
    prepare_acls(place)
    named, folder = place / "named", place / "dir"
    assert python(READ, named, user=9) == python(READ, named, user=8, groups=(60,)) == python(READ, named, user=7) == "for some"
    assert python(READ, named, user=8) == python(APPEND, named, user=9) == "EACCES" and python(APPEND, named, user=7) == "ok"
    assert python(READ, folder / "f", user=9) == "inside" and python(READ, folder / "f", user=8) == "EACCES"
    assert python(MAKE, folder / "made", user=9) == "ok" and python(MAKE, folder / "other", user=8) == "EACCES"
    named.chmod(0o600)  # the mask goes to nothing, and the ACL with it
    assert python(READ, named, user=9) == "EACCES"
    access_acl(named, "m::rw,u:9:rw")
    assert python(APPEND, named, user=9) == "ok" and python(READ, named, user=8, groups=(60,)) == "for some"
    run("setfacl", "-b", named)
    assert python(READ, named, user=9) == "EACCES"


def test_access_acls_of_a_squashed_root(node, mount):
    entered(node)
    place = mount("")
    prepare_acls(place)
    remount(node, place, "root_squash")
    assert (place / "named").read_text() == "for some" and (place / "dir" / "f").read_text() == "inside"
    with fails(errno.EACCES):
        (place / "named").open("a")
    (place / "dir" / "mine").write_text("x")
    assert os.stat(place / "dir" / "mine").st_uid == NOBODY
    assert (
        python("import subprocess\nsubprocess.run(['setfacl', '-b', sys.argv[1]], check=True)\nprint('ok')", place / "named", user=7)
        == "ok"
    )
    with fails(errno.EACCES):
        (place / "named").read_text()


def test_acls_of_mapped_ids(node, mount):
    """What is named in an ACL is mapped both ways, and an id without a counterpart cannot be named."""
    entered(node)
    place = mount("")
    (place / "f").write_text("mapped")
    (place / "d").mkdir()
    for name in ("f", "d"):
        os.chown(place / name, 101_000, 101_000)
        (place / name).chmod(0o700)
    access_acl(place / "f", "u:100009:r,g:100060:r,u:5:rw")
    remount(node, place, "map_uid=0:100000:2000,map_gid=0:100000:2000")
    said = run("getfacl", "-n", "-p", place / "f").stdout.split()
    assert {"user:9:r--", "group:60:r--", f"user:{NOBODY}:rw-"} <= set(said)
    assert python(READ, place / "f", user=9) == python(READ, place / "f", user=8, groups=(60,)) == "mapped"
    assert python(READ, place / "f", user=8) == python(APPEND, place / "f", user=9) == "EACCES"
    run("setfacl", "-m", "u:10:rwx,d:u:10:rwx,d:g:61:rx", place / "d")
    assert python(MAKE, place / "d" / "sub", user=10) == "ok" and python(MAKE, place / "d" / "other", user=11) == "EACCES"
    refused = run("setfacl", "-m", "u:5000:r", place / "d", check=False)
    assert refused.returncode != 0 and "too large" in refused.stderr
    remount(node, place, "")
    assert {"user:100010:rwx", "group:100061:r-x", "default:user:100010:rwx"} <= set(
        run("getfacl", "-n", "-p", place / "d" / "sub").stdout.split()
    )


# Other suites run at the same time, and what they call umount(8) for is to go on as if no helper were there.
_FOR_OTHERS = """#!/bin/sh
[ -n "$AWSOMEFSD_PROGRAM" ] || exec umount -i "$@"
"""


# --- mount(8), fstab, umount ------------------------------------------------------------------------------------------------------
@pytest.fixture
def helpers(node) -> Iterator[dict[str, str]]:
    """packaging/sbin in /sbin, for this test; never over what is there."""
    targets = [Path("/sbin") / path.name for path in SBIN.iterdir()]
    if any(target.exists() for target in targets):
        pytest.skip("the mount helpers of an installation are in /sbin")
    program = node.directory / "program"
    program.write_text(f'#!/bin/sh\nexec {" ".join(node.command)} "$@"\n')
    program.chmod(0o755)
    try:
        for path, target in zip(SBIN.iterdir(), targets, strict=True):
            target.write_text(path.read_text().replace("#!/bin/sh\n", _FOR_OTHERS if path.name.startswith("umount") else "#!/bin/sh\n", 1))
            target.chmod(0o755)
        yield node.environment() | {"AWSOMEFSD_PROGRAM": str(program)}
    finally:
        for target in targets:
            target.unlink(missing_ok=True)


def test_mount_fstab_and_umount(node, mount, helpers):
    place = mount("")
    volume = place.name
    (place / "f").write_text("kept")
    run("umount", place, env=helpers)
    assert not os.path.ismount(place)
    run("mount", "-t", "awsomefs", volume, place, "-o", "ro,noexec,_netdev,nofail,x-test=1", env=helpers)
    assert {"ro", "noexec"} <= set(run("findmnt", "-no", "OPTIONS", place).stdout.strip().split(","))
    run("umount", "-l", place, env=helpers)
    bad = run("mount", "-t", "awsomefs", volume, place, "-o", "nosiud", env=helpers, check=False)
    assert bad.returncode != 0 and "nosiud" in bad.stderr
    fstab = node.directory / "fstab"
    fstab.write_text(f"{volume} {place} awsomefs defaults,_netdev,nofail,noatime 0 0\n")
    for _ in range(2):  # the second one finds it mounted
        run("mount", "-a", "-T", fstab, env=helpers)
    assert (place / "f").read_text() == "kept"
    with (place / "f").open():
        busy = run("umount", place, env=helpers, check=False)
        assert busy.returncode != 0 and "busy" in busy.stderr
    run("umount", place, env=helpers)
    assert not os.path.ismount(place)


def test_mount_8_remounts(node, mount, helpers):
    """mount(8) names the type of a mount that is in no fstab fuse.awsomefs, and runs another helper for it."""
    place = mount("nodev")
    fstab = node.directory / "fstab"
    fstab.write_text(f"{place.name} {place} awsomefs defaults,_netdev,nodev,noatime 0 0\n")
    (place / "f").write_text("x")
    for form in ([], ["-T", fstab]):
        with (place / "f").open("a"):
            busy = run("mount", *form, "-o", "remount,ro", place, env=helpers, check=False)
            assert busy.returncode == 32 and "busy" in busy.stderr
        run("mount", *form, "-o", "remount,ro,nosuid", place, env=helpers)
        with fails(errno.EROFS):
            (place / "g").touch()
        (row,) = [row for row in node.ask("status")["mounts"] if row["directory"] == str(place)]
        assert {"ro", "nosuid", "nodev"} <= set(row["options"])
        run("mount", *form, "-o", "remount,rw,suid", place, env=helpers)
        (place / "g").write_text("y")
    shown = run("findmnt", "-no", "OPTIONS", place).stdout.strip().split(",")
    assert {"rw", "nodev", "noatime"} <= set(shown) and "nosuid" not in shown
    refused = run("mount", "-o", "remount,root_squash", place, env=helpers, check=False)
    assert refused.returncode == 32 and "root_squash" in refused.stderr and "unmount" in refused.stderr
    run("mount", "-o", "remount,sync", place, env=helpers)
    assert "sync" in run("findmnt", "-no", "OPTIONS", place).stdout.strip().split(",")
    refused = run("mount", "-o", "remount,dirsync", place, env=helpers, check=False)
    assert refused.returncode == 32 and "cannot change dirsync" in refused.stderr
    other = mount("dirsync")
    run("mount", "-o", "remount,ro", other, env=helpers)
    assert {"ro", "dirsync"} <= set(run("findmnt", "-no", "OPTIONS", other).stdout.strip().split(","))


# --- bind mounts and overlayfs -------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def mounted(target: Path, *words: str | Path) -> Iterator[Path]:
    run("mount", *words, target)
    try:
        yield target
    finally:
        run("umount", "-l", target)


def test_a_bind_mount_of_a_subdirectory_outlives_the_worker(node, mount):
    place = mount("")
    (place / "sub" / "deep").mkdir(parents=True)
    target = node.directory / "bound"
    target.mkdir()
    with mounted(target, "--bind", place / "sub"):
        (target / "deep" / "f").write_text("one")
        node.replaced("worker", _kill_worker(node, place))
        assert (target / "deep" / "f").read_text() == "one" == (place / "sub" / "deep" / "f").read_text()
        (target / "deep" / "f").write_text("two")
        assert (place / "sub" / "deep" / "f").read_text() == "two"


def test_overlayfs_with_our_mount_below(node, mount, tmp_path):
    place = mount("")
    (place / "lower" / "dir").mkdir(parents=True)
    (place / "lower" / "gone").write_text("gone")
    (place / "lower" / "changed").write_text("lower")
    (place / "lower" / "dir" / "f").write_text("in dir")
    with contextlib.ExitStack() as stack:
        local = tmp_path / "local"
        local.mkdir()
        stack.enter_context(mounted(local, "-t", "tmpfs", "none"))
        for name in ("upper", "work", "merged"):
            (local / name).mkdir()
        options = f"lowerdir={place}/lower,upperdir={local}/upper,workdir={local}/work,redirect_dir=on"
        merged = stack.enter_context(mounted(local / "merged", "-t", "overlay", "overlay", "-o", options))
        _use_overlay(merged)
        node.replaced("worker", _kill_worker(node, place))
        assert (merged / "changed").read_text() == "upper" and (merged / "moved" / "f").read_text() == "in dir"
        assert os.stat(local / "upper" / "gone").st_rdev == 0
    assert (place / "lower" / "gone").read_text() == "gone" and (place / "lower" / "changed").read_text() == "lower"


def _use_overlay(merged: Path) -> None:
    assert (merged / "dir" / "f").read_text() == "in dir"
    (merged / "gone").unlink()
    (merged / "changed").write_text("upper")
    (merged / "dir").rename(merged / "moved")
    (merged / "new").write_text("new")
    assert sorted(os.listdir(merged)) == ["changed", "moved", "new"]


@pytest.mark.parametrize("userxattr", [False, True])
def test_overlayfs_with_our_mount_above(node, mount, userxattr):
    """The kernel takes an upper that revalidates names, as FUSE does, only with xattrs, d_type and RENAME_WHITEOUT."""
    place = mount("")
    for name in ("lower/dir", "upper", "work", "merged"):
        (place / name).mkdir(parents=True)
    (place / "lower" / "gone").write_text("gone")
    (place / "lower" / "changed").write_text("lower")
    (place / "lower" / "dir" / "f").write_text("in dir")
    options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work" + (",userxattr" if userxattr else ",redirect_dir=on")
    done = run("mount", "-t", "overlay", "overlay", "-o", options, place / "merged", check=False)
    assert done.returncode == 0, (done.stderr, run("sh", "-c", "dmesg | tail -3", check=False).stdout)
    try:
        merged = place / "merged"
        (merged / "gone").unlink()
        (merged / "changed").write_text("upper")
        (merged / "new").write_text("new")
        if not userxattr:
            (merged / "dir").rename(merged / "moved")
            assert (merged / "moved" / "f").read_text() == "in dir"
        assert "gone" not in os.listdir(merged) and (place / "lower" / "changed").read_text() == "lower"
    finally:
        run("umount", "-l", place / "merged")


def test_a_root_of_ones_own_on_an_overlay(node, mount, tmp_path):
    """As a container: its root is an overlay over our mount, entered with chroot in namespaces of its own."""
    place = mount("")
    lower = place / "image"
    for name in ("bin", "proc", "tmp", "lib", "lib64", "usr"):
        (lower / name).mkdir(parents=True)
    for program in ("sh", "cat", "ls", "mkdir"):
        binary = Path(shutil.which(program) or "")
        shutil.copy(os.path.realpath(binary), lower / "bin" / program)
        for word in run("ldd", os.path.realpath(binary)).stdout.split():
            if word.startswith("/"):
                (lower / word[1:]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(os.path.realpath(word), lower / word[1:])
    with contextlib.ExitStack() as stack:
        local = tmp_path / "local"
        local.mkdir()
        stack.enter_context(mounted(local, "-t", "tmpfs", "none"))
        for name in ("upper", "work", "root"):
            (local / name).mkdir()
        options = f"lowerdir={lower},upperdir={local}/upper,workdir={local}/work"
        root = stack.enter_context(mounted(local / "root", "-t", "overlay", "overlay", "-o", options))
        script = "mkdir /made && echo hello > /made/f && cat /made/f && ls /proc/1 > /dev/null 2>&1; echo $$"
        done = run("unshare", "--mount", "--pid", "--fork", f"--root={root}", "/bin/sh", "-c", script)
        assert done.stdout.split() == ["hello", "1"]
        assert (local / "upper" / "made" / "f").read_text() == "hello\n" and not (lower / "made").exists()
