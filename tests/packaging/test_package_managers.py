"""What users of the two package managers do with what `build.py release` makes, in roots of their own: no daemon, no systemd as process 1.

The .rpm goes into an empty root (files, dependencies, verification, removal) and, with its scriptlets, into a copy of Debian; there the
.deb comes by apt out of a signed repository.  A machine with systemd: test_debian_package.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools import binary, packages, repository
from tests.packaging.container import BASE, WITHOUT_OTHERS, make_base
from tests.packaging.container import missing as no_container
from tests.packaging.test_repository import key

pytestmark = [pytest.mark.soak, pytest.mark.root, pytest.mark.timeout(1_800)]
__all__ = ["key"]
SELF_CHECK = 'mount -t proc proc "$1/proc"; mount --bind /dev "$1/dev"; exec chroot "$1" awsomefsd self-check'


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The package, and a newer one of the same program."""
    if not (binary.directory() / "awsomefsd").exists():
        pytest.skip("no binary in dist/: python3 build.py binary")
    if shutil.which("rpm") is None:
        pytest.skip("not installed: rpm")
    folder = tmp_path_factory.mktemp("rpms")
    return [packages.build(binary.directory(), release=release, kinds=("rpm",), folder=folder)[0] for release in (1, 2)]


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Path]:
    """A root of Debian 12 that may be changed."""
    if why := no_container():
        pytest.skip(why)
    make_base()
    root = tmp_path / "debian"
    subprocess.run(["cp", "-a", "--reflink=auto", BASE, root], check=True)
    yield root
    shutil.rmtree(root)


def rpm(root: Path, *words: str | Path, check: bool = True) -> str:
    argv = ["rpm", "--root", str(root), "--dbpath", "/var/lib/rpm", *map(str, words)]
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, env=env, check=False)
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def inside(root: Path, *words: str, script: str = 'exec chroot "$@"') -> str:
    """What a program in the root says; mounts of the script end with their namespace."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    argv = ["unshare", "--mount", "sh", "-ec", WITHOUT_OTHERS + script, "sh", str(root), *words]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, env=env, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def files(root: Path) -> set[str]:
    return {f"/{path.relative_to(root)}" for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_in_an_empty_root(rpms: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    wanted = set(rpm(root, "-qp", "--requires", rpms[0]).splitlines())
    assert {"/bin/sh", "libc.so.6(GLIBC_2.34)(64bit)", "libc.so.6()(64bit)"} <= wanted
    said = rpm(root, "-i", rpms[0], check=False)
    assert "Failed dependencies" in said and "/bin/sh is needed" in said, "an empty root has nothing of it"
    rpm(root, "-i", "--nodeps", "--noscripts", rpms[0])
    assert rpm(root, "-V", "--nodeps", "--noscripts", "awsomefsd", check=False) == "", "mode, owner and digest of each file"
    listed = set(rpm(root, "-ql", "awsomefsd").splitlines())
    assert {"/usr/bin/awsomefsd", "/usr/sbin/mount.awsomefs", "/usr/lib/systemd/system/awsomefsd.service"} <= listed
    assert files(root) - listed <= {path for path in files(root) if path.startswith("/var/lib/rpm/")}
    assert rpm(root, "-qc", "awsomefsd").split() == ["/etc/awsomefsd/awsomefsd.toml"]
    (root / "etc/awsomefsd/awsomefsd.toml").write_text("# mine\n")
    rpm(root, "-U", "--nodeps", "--noscripts", rpms[1])
    assert (root / "etc/awsomefsd/awsomefsd.toml").read_text() == "# mine\n", "kept as it was changed"
    rpm(root, "-e", "--noscripts", "awsomefsd")
    assert {path for path in files(root) if not path.startswith("/var/lib/rpm/")} == {"/etc/awsomefsd/awsomefsd.toml.rpmsave"}
    assert not (root / "usr/lib/awsomefsd").exists() and not (root / "usr/share/doc/awsomefsd").exists()


def test_scriptlets_in_a_debian_root(rpms: list[Path], debian: Path) -> None:
    """--nodeps: rpm's database there knows nothing of what dpkg has installed."""
    said = rpm(debian, "-i", "--nodeps", rpms[0])
    assert "nothing was started" in said and "awsomefsd init" in said
    assert "awsomefs:" in inside(debian, "getent", "group", "awsomefs")
    assert "asserts" in inside(debian, script=SELF_CHECK)
    assert "nothing was started" not in rpm(debian, "-U", "--nodeps", rpms[1])
    assert rpm(debian, "-q", "awsomefsd").strip() == rpms[1].name.removesuffix(".rpm")
    (debian / "var/lib/awsomefsd").mkdir(exist_ok=True)
    (debian / "var/lib/awsomefsd/node.json").write_text("{}")
    assert "kept are the state" in rpm(debian, "-e", "awsomefsd")
    assert (debian / "var/lib/awsomefsd/node.json").exists() and not (debian / "usr/lib/awsomefsd").exists()


def test_apt_installs_it_from_a_signed_repository(debs: list[Path], debian: Path, key: str) -> None:
    if repository.missing() or shutil.which("gpg") is None:
        pytest.skip("not installed: apt-utils, createrepo-c or gpg")
    made = repository.apt(debian / "srv/apt", debs, int(binary.epoch()), key)
    keys = debian / "etc/apt/keyrings"
    keys.mkdir(parents=True, exist_ok=True)
    shutil.copy(made / repository.KEY_FILE, keys)
    for old in (debian / "etc/apt").glob("sources.list*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    (debian / "etc/apt/sources.list").write_text(f"deb [signed-by=/etc/apt/keyrings/{repository.KEY_FILE}] file:/srv/apt stable main\n")
    inside(debian, "apt-get", "-q", "update")
    shown = inside(debian, "apt-cache", "policy", "awsomefsd")
    assert f"Candidate: {binary.version()}-2" in shown, shown
    said = inside(debian, "apt-get", "-qy", "--no-install-recommends", "install", "awsomefsd")
    assert "nothing was started" in said and "WARNING" not in said, said
    assert "asserts" in inside(debian, script=SELF_CHECK)
    inside(debian, "apt-get", "-qy", "purge", "awsomefsd")
    assert not (debian / "usr/lib/awsomefsd").exists() and not (debian / "etc/awsomefsd/awsomefsd.toml").exists()
