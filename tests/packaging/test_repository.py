"""The two repositories: apt and createrepo_c read back what was made, and refuse what was changed afterwards."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as tree
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools import repository
from buildtools.say import BuildError
from tests.packaging.container import until

EPOCH = 1_000_000_000
CONTROL = "Package: {}\nVersion: 1.5\nArchitecture: amd64\nMaintainer: a <a@b.invalid>\nDescription: d\n"


@pytest.fixture(autouse=True)
def _tools() -> None:
    if lacking := [*repository.missing(), *(tool for tool in ("gpg", "dpkg-deb", "apt-get") if shutil.which(tool) is None)]:
        pytest.skip(f"not installed: {' '.join(lacking)}")


def a_deb(folder: Path, name: str) -> Path:
    (folder / name / "DEBIAN").mkdir(parents=True)
    (folder / name / "DEBIAN/control").write_text(CONTROL.format(name))
    target = folder / f"{name}_1.5_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", folder / name, target], check=True, stdout=subprocess.DEVNULL)
    return target


def helpers_of(home: Path) -> list[str]:
    """Command lines of what gpg has started for this home and leaves running: agent, card daemon, key box."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if str(home) in words:
                found.append(" ".join(words))
    return found


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A key of gpg's that lives as long as the test, and so do the processes that gpg starts for it."""
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    made = ["gpg", "--batch", "--passphrase", "", "--quick-generate-key", "test@awsomefsd.invalid", "rsa2048", "sign"]
    try:
        subprocess.run(made, check=True, capture_output=True)
        said = subprocess.run(["gpg", "--list-keys", "--with-colons"], capture_output=True, text=True, check=True).stdout
        assert helpers_of(home), "gpg has an agent; else the check below would find nothing, whatever was left"
        yield re.findall(r"^fpr:+([0-9A-F]{40})", said, re.M)[0]
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True, capture_output=True)
        until("the end of gpg's helpers", lambda: not helpers_of(home))


def apt(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    for name in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/apt.conf.d", "log"):
        (home / name).mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    places = {"Dir::State": "state", "Dir::State::status": "status", "Dir::Cache": "cache", "Dir::Etc": "etc", "Dir::Log": "log"}
    options = [word for name, value in places.items() for word in ("-o", f"{name}={home}/{value}")]
    options += ["-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=root", "-o", "APT::Update::Error-Mode=any"]
    env = {**os.environ, "APT_CONFIG": "/dev/null", "LC_ALL": "C"}
    return subprocess.run(["apt-get", "-q", *options, *words], cwd=home, capture_output=True, text=True, env=env, timeout=120, check=False)


def test_apt_takes_what_is_signed_and_refuses_what_was_changed(tmp_path: Path, key: str) -> None:
    folder = repository.apt(tmp_path / "apt", [a_deb(tmp_path, "one"), a_deb(tmp_path, "two")], EPOCH, key)
    home = tmp_path / "home"
    (home / "etc").mkdir(parents=True)
    (home / "etc/sources.list").write_text(f"deb [signed-by={folder}/{repository.KEY_FILE}] file:{folder} stable main\n")
    done = apt(home, "update")
    assert done.returncode == 0, done.stderr
    done = apt(home, "download", "two")
    assert done.returncode == 0 and len(list(home.glob("two_*.deb"))) == 1, done.stderr
    release = folder / "dists/stable/InRelease"
    release.write_text(release.read_text().replace("awsomefsd", "somebody", 1))
    done = apt(home, "update")
    assert done.returncode != 0 and "BADSIG" in done.stderr + done.stdout, done


def test_without_a_key_it_is_the_same_twice_and_says_who_trusts_it(tmp_path: Path) -> None:
    debs = [a_deb(tmp_path, "one")]
    made = [repository.apt(tmp_path / name, debs, EPOCH) for name in ("a", "b")]
    both = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in made]
    assert both[0] == both[1] and not any("InRelease" in str(path) for path in both[0])
    assert "Date: Sun, 09 Sep 2001 01:46:40 UTC" in (made[0] / "dists/stable/Release").read_text()
    home = tmp_path / "home"
    (home / "etc").mkdir(parents=True)
    (home / "etc/sources.list").write_text(f"deb file:{made[0]} stable main\n")
    assert "not signed" in apt(home, "update").stderr
    (home / "etc/sources.list").write_text(f"deb [trusted=yes] file:{made[0]} stable main\n")
    assert apt(home, "update").returncode == 0


def test_a_key_that_gpg_does_not_have(tmp_path: Path, key: str) -> None:
    with pytest.raises(BuildError, match="gpg"):
        repository.apt(tmp_path / "apt", [a_deb(tmp_path, "one")], EPOCH, "nobody@nowhere.invalid")


SPEC = "Name: one\nVersion: 1\nRelease: 1\nSummary: s\nLicense: MIT\nBuildArch: noarch\n%description\nd\n%files\n"


@pytest.fixture
def an_rpm(tmp_path: Path) -> Path:
    if lacking := [tool for tool in ("rpmbuild", "rpmsign", "rpmkeys") if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {' '.join(lacking)}")
    (tmp_path / "one.spec").write_text(SPEC)
    argv = ["rpmbuild", "-bb", "--define", f"_topdir {tmp_path / 'top'}", str(tmp_path / "one.spec")]
    subprocess.run(argv, check=True, capture_output=True)
    [made] = tmp_path.glob("top/RPMS/noarch/*.rpm")
    return made


def test_rpm_knows_the_signature_and_a_change(tmp_path: Path, an_rpm: Path, key: str) -> None:
    unsigned = an_rpm.read_bytes()
    folder = repository.rpm(tmp_path / "rpm", [an_rpm], EPOCH, key)
    assert an_rpm.read_bytes() == unsigned, "only what is handed out is signed"
    keys = ["rpmkeys", "--dbpath", str(tmp_path / "db")]
    (tmp_path / "db").mkdir()
    subprocess.run([*keys, "--import", folder / repository.KEY_FILE], check=True, capture_output=True)
    [package] = folder.glob("*.rpm")
    done = subprocess.run([*keys, "--checksig", package], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "signatures OK" in done.stdout, done
    assert "signatures OK" not in subprocess.run([*keys, "--checksig", an_rpm], capture_output=True, text=True, check=False).stdout
    package.write_bytes(package.read_bytes()[:-1] + b"x")
    assert subprocess.run([*keys, "--checksig", package], capture_output=True, check=False).returncode != 0


def test_dnf_s_list_is_of_the_packages_and_signed(tmp_path: Path, key: str) -> None:
    folder = repository.rpm(tmp_path / "rpm", [], EPOCH, key)
    listed = (folder / "repodata/repomd.xml").read_bytes()
    subprocess.run(["gpg", "--verify", folder / "repodata/repomd.xml.asc", folder / "repodata/repomd.xml"], check=True, capture_output=True)
    root = tree.fromstring(listed)
    space = {"r": "http://linux.duke.edu/metadata/repo"}
    assert root.findtext("r:revision", namespaces=space) == str(EPOCH)
    places = [row.get("href") for row in root.findall("r:data/r:location", space)]
    primary = next(str(place) for place in places if "primary" in str(place))
    assert b'packages="0"' in gzip.decompress((folder / primary).read_bytes())
    assert (repository.rpm(tmp_path / "again", [], EPOCH, key) / "repodata/repomd.xml").read_bytes() == listed
