"""Another build of the program, for tests of nodes that are not all of one.

`make_other_build`: a copy of the package that says another version of itself, and whose newest wire protocols are newer ones.  What such a
build and this one say to each other is in the words of this one.  `make_build_of`: that of a commit.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from awsomefsd.meta.api.messages import PROTOCOL_VERSION
from awsomefsd.meta.voter.peer_messages import PEER_PROTOCOL_VERSION

ROOT = Path(__file__).resolve().parents[2]
VERSION = "9.9.9"
NEWER = PROTOCOL_VERSION + 1


def copy_package(source: Path, target: Path) -> None:
    """With its bytecode, but for what another process is just writing: such a file has another name a moment later."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.pyc.*"))


def make_other_build(directory: Path, version: str = VERSION, source: Path = ROOT) -> Path:
    """Makes it in `directory`, which is then its PYTHONPATH, of the package in `source`, with what is there of its bytecode."""
    package = directory / "awsomefsd"
    copy_package(source / "awsomefsd", package)
    changes = {
        "__init__.py": f"__version__ = {version!r}",
        "meta/api/messages/connection.py": f"PROTOCOL_VERSION = {NEWER}",
        "meta/voter/peer_messages.py": f"PEER_PROTOCOL_VERSION = {PEER_PROTOCOL_VERSION + 1}",
    }
    for path, line in changes.items():
        text = (package / path).read_text()
        assert f"\n{line.split()[0]} = " in text
        (package / path).write_text(f"{text}\n{line}\n")
    return directory


def make_build_of(commit: str, directory: Path, version: str, source: Path = ROOT) -> Path | None:
    """Makes the build of a commit in `directory`, which is then its PYTHONPATH; None where there is no such commit.  Only its version is
    said to be this one, so that its processes can be told from ours."""
    archive = ["git", "-C", str(source), "archive", "--format=tar", commit, "awsomefsd"]
    try:
        packed = subprocess.run(archive, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        return None
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as tar:
        tar.extractall(directory, filter="data")
    with (directory / "awsomefsd" / "__init__.py").open("a") as file:
        file.write(f"__version__ = {version!r}\n")
    return directory
