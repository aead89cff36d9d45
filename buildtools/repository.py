"""Repositories of the packages: dist/repository/apt for apt, dist/repository/rpm for dnf; directories that any web server hands out.

Made by the tools of the two worlds (apt-ftparchive; createrepo_c), with the time of the build and nothing of this machine, so the same
packages give the same bytes.  Signed when a key of gpg's is named (`--key`): InRelease and Release.gpg for apt; the packages themselves and
repomd.xml for dnf, whose signatures carry the time of their making.  Without a key nothing is signed, and apt takes such a repository only
where its administrator says trusted=yes.
"""

from __future__ import annotations

import gzip
import os
import shutil
import time
from pathlib import Path

from buildtools.say import BuildError, good, run, step, warn

SUITE, COMPONENT = "stable", "main"
KEY_FILE = "awsomefsd.asc"
TOOLS = {"apt-ftparchive": "apt-utils", "createrepo_c": "createrepo-c"}
_RELEASE = {"Origin": "awsomefsd", "Label": "awsomefsd", "Suite": SUITE, "Codename": SUITE, "Components": COMPONENT}


def missing() -> list[str]:
    """Debian packages that are wanted for it."""
    return [package for tool, package in TOOLS.items() if shutil.which(tool) is None]


def _sign(key: str, *words: str | Path) -> None:
    run(["gpg", "--batch", "--yes", "--local-user", key, *words], what="gpg")


def _public(key: str, target: Path) -> None:
    target.write_text(run(["gpg", "--batch", "--armor", "--export", key], what="gpg --export"))
    if not target.stat().st_size:
        raise BuildError(f"gpg has no key {key}")


def apt(folder: Path, debs: list[Path], epoch: int, key: str = "") -> Path:
    """pool/ with the packages, dists/stable with what apt reads first."""
    shutil.rmtree(folder, ignore_errors=True)
    pool, dist = folder / "pool" / COMPONENT, folder / "dists" / SUITE
    pool.mkdir(parents=True)
    for deb in debs:
        shutil.copy(deb, pool)
    listed = run(["apt-ftparchive", "packages", f"pool/{COMPONENT}"], what="apt-ftparchive", cwd=folder)
    architectures = sorted({row.partition(": ")[2] for row in listed.splitlines() if row.startswith("Architecture: ")})
    for architecture in architectures:
        place = dist / COMPONENT / f"binary-{architecture}"
        place.mkdir(parents=True)
        own = [text for text in listed.split("\n\n") if f"\nArchitecture: {architecture}\n" in text]
        (place / "Packages").write_text("\n\n".join(own).rstrip("\n") + "\n")
        (place / "Packages.gz").write_bytes(gzip.compress((place / "Packages").read_bytes(), 9, mtime=0))
    fields = _RELEASE | {"Architectures": " ".join(architectures)}
    words = [word for name, value in fields.items() for word in ("-o", f"APT::FTPArchive::Release::{name}={value}")]
    said = run(["apt-ftparchive", *words, "release", str(dist)], what="apt-ftparchive release").splitlines(keepends=True)
    moment = time.strftime("%a, %d %b %Y %H:%M:%S UTC", time.gmtime(epoch))
    (dist / "Release").write_text("".join(f"Date: {moment}\n" if row.startswith("Date:") else row for row in said))
    if key:
        _public(key, folder / KEY_FILE)
        _sign(key, "--clearsign", "--output", dist / "InRelease", dist / "Release")
        _sign(key, "--armor", "--detach-sign", "--output", dist / "Release.gpg", dist / "Release")
    return folder


def rpm(folder: Path, rpms: list[Path], epoch: int, key: str = "") -> Path:
    """The packages, and repodata/."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package in rpms:
        copy = Path(shutil.copy(package, folder))
        if key:
            gpg = f"__gpg {shutil.which('gpg') or 'gpg'}"  # distributions differ in what rpm calls it
            run(["rpmsign", "--define", f"_gpg_name {key}", "--define", gpg, "--addsign", copy], what="rpmsign")
        os.utime(copy, (epoch, epoch))  # stands in the list
    words = ["--quiet", "--no-database", "--compress-type=gz", f"--revision={epoch}", "--set-timestamp-to-revision", str(folder)]
    run(["createrepo_c", *words], what="createrepo_c")
    if key:
        _public(key, folder / KEY_FILE)
        _sign(key, "--armor", "--detach-sign", folder / "repodata" / "repomd.xml")
    return folder


def build(folder: Path, packages: list[Path], epoch: int, key: str = "") -> list[Path]:
    """Both, where the tools are; what was made."""
    step("Repositories")
    if lacking := missing():
        warn(f"not made: repositories (apt-get install -y {' '.join(lacking)})")
        return []
    made = [apt(folder / "apt", [path for path in packages if path.suffix == ".deb"], epoch, key)]
    made.append(rpm(folder / "rpm", [path for path in packages if path.suffix == ".rpm"], epoch, key))
    good(f"{folder}: apt, rpm; {f'signed with {key}' if key else 'not signed (--key KEY signs)'}")
    return made
