"""Loop devices, found and detached by their backing file, never by a remembered number."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from buildtools.say import BuildError


def of_file(image: Path) -> list[str]:
    """The loop devices whose backing file is `image`."""
    wanted = str(image.resolve())
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().strip() == wanted:
                found.append(f"/dev/{backing.parts[3]}")
        except OSError:
            continue  # detached meanwhile
    return sorted(found)


def usable() -> bool:
    return os.path.exists("/dev/loop-control") and os.access("/dev/loop-control", os.W_OK)


def attach(image: Path) -> str:
    """The loop device of `image`, attached with direct I/O if it was not; direct I/O is dropped where the host's filesystem has none."""
    present = of_file(image)
    if present:
        return present[0]
    for direct in ("on", "off"):
        words = ["losetup", "--find", "--show", f"--direct-io={direct}", str(image)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
        for half in of_file(image):  # attached, but without direct I/O
            detach(half)
    raise BuildError(f"losetup of {image} failed: {done.stderr.strip()}")


def detach(device: str) -> None:
    subprocess.run(["losetup", "--detach", device], capture_output=True, check=False)
