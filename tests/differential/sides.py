"""One tree and the users in it.  `start` sends an operation, `result` awaits it, so that somebody can be killed in between."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buildtools import loops
from tests.differential.user_process import Actor

ROOT = Path(__file__).resolve().parents[2]
IMAGE_BYTES = 3 << 30


@dataclass(frozen=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


USERS = {"root": User(0, 0), "ann": User(4001, 5001, (5001, 5003)), "bob": User(4002, 5002, (5003,))}


class Process:
    """The pipe to an actor."""

    def __init__(self, base: Path, user: User) -> None:
        words = [str(base), str(user.uid), str(user.gid), ",".join(map(str, user.groups))]
        argv = [sys.executable, "-m", "tests.differential.user_process", *words]
        env = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
        self.child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT)

    def start(self, kind: str, arguments: tuple[Any, ...]) -> None:
        assert self.child.stdin is not None
        pickle.dump((kind, arguments), self.child.stdin)
        self.child.stdin.flush()

    def result(self) -> Any:
        assert self.child.stdout is not None
        return pickle.load(self.child.stdout)

    def close(self) -> None:
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Directory:
    """A side that is a directory of some mounted file system."""

    def __init__(self, name: str, base: Path) -> None:
        self.name, self.base = name, base
        self.actors = {user: Process(base, USERS[user]) for user in USERS}
        self.entered = ""

    def call(self, user: str, kind: str, *arguments: Any) -> Any:
        self.actors[user].start(kind, arguments)
        return self.actors[user].result()

    def start(self, user: str, kind: str, arguments: tuple[Any, ...]) -> None:
        self.actors[user].start(kind, arguments)

    def result(self, user: str) -> Any:
        return self.actors[user].result()

    def tree(self, full: bool) -> dict[str, tuple[Any, ...]]:
        found = self.call("root", "tree", full)
        assert isinstance(found, dict), f"{self.name}: {found}"
        return found

    def begin(self, name: str, mode: int) -> None:
        assert self.call("root", "make", name, mode) is None
        for user in self.actors:
            assert self.call(user, "enter", name) is None
        self.entered = name

    def finish(self) -> None:
        for user in self.actors:
            assert self.call(user, "leave") is None
        assert self.call("root", "remove", self.entered) is None

    def mount_again(self, again: Callable[[], None]) -> dict[str, Any]:
        """Everybody leaves, `again` unmounts and mounts it, and they come back.

        Returns what each was told then: who was in a directory may have lost the right to enter it.
        """
        for user in self.actors:
            assert self.call(user, "leave") is None
        self.close()
        again()
        self.actors = {user: Process(self.base, USERS[user]) for user in USERS}
        return {user: self.call(user, "enter", self.entered) for user in self.actors}

    def close(self) -> None:
        for actor in self.actors.values():
            actor.close()


@contextlib.contextmanager
def ext4(folder: Path, options: str = "noatime") -> Iterator[Path]:
    """A fresh ext4 on a loop device."""
    image, place = folder / "ext4.img", folder / "ext4"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    device = loops.attach(image)
    try:
        subprocess.run(["mount", "-t", "ext4", "-o", options, device, str(place)], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", "-i", "-l", str(place)], check=False)
    finally:
        loops.detach(device)
        image.unlink()


def again(place: Path, options: str = "noatime") -> None:
    """Unmounts the ext4 of `ext4`, and mounts it as it was at first."""
    device = subprocess.check_output(["findmnt", "-no", "SOURCE", str(place)], text=True).strip()
    subprocess.run(["umount", str(place)], check=True)
    subprocess.run(["mount", "-t", "ext4", "-o", options, device, str(place)], check=True)


def kinds() -> set[str]:
    """All operations that an actor knows, without those of the frame."""
    return {name[3:] for name in dir(Actor) if name.startswith("do_")} - {"make", "enter", "leave", "remove", "tree"}
