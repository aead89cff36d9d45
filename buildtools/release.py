"""build.py release: everything that is handed out, in dist/, with checksums; and what could not be checked, in words."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from buildtools import audit, binary, bom, image, packages, repository
from buildtools.say import CHECKOUT, BuildError, good, line, size, step, warn

SUMS = "SHA256SUMS"


def current_binary(jobs: int) -> Path:
    """The last build if it is of these very sources, else a new one."""
    if found := binary.current():
        good(f"{found.parent.name} is of these sources")
        return found.parent
    return binary.build(jobs)


def _known_vulnerabilities() -> None:
    if audit.build(binary.RECIPE / "requirements.lock") == 1:
        raise BuildError("vulnerabilities are known of what would be released")


def sums(paths: list[Path]) -> Path:
    target = paths[0].parent / SUMS
    target.write_text("".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(paths)))
    return target


def build(jobs: int = 0, key: str = "") -> list[Path]:
    if subprocess.run(["git", "-C", str(CHECKOUT), "status", "--porcelain"], capture_output=True, text=True, check=False).stdout.strip():
        warn("the checkout has changes that are not committed: this is no release of its commit")
    target = current_binary(jobs)
    _known_vulnerabilities()
    made = [binary.archive(target), *packages.build(target), image.build(target)]
    listed = target.parent / f"{target.name}.{bom.SBOM}"
    shutil.copy(target / bom.SBOM, listed)
    repository.build(target.parent / "repository", made, int(binary.epoch()), key)
    step("Checksums")
    for path in [*made, listed]:
        good(f"{path.name}, {size(path.stat().st_size)}")
    line(f"  {sums([*made, listed])}")
    return made
