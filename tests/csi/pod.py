"""A pod that stands for one of ours: a mount namespace, a control group and an image of its own; and an application in another pod.

The node is the namespaces of this test.  kubelet's directory is a shared mount, as on a real node, so that mounts go both ways
(Bidirectional); the pod's image is a tmpfs that only the pod sees, so whatever ran from it or hung on it would end with the pod.  A process
of ours stands for process 1: what the tests start must not leave the groups that this test is in.
"""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from awsomefsd import __version__
from awsomefsd.node.pod import enter_host
from buildtools import procs
from buildtools.nodes import Node, await_true
from buildtools.say import CHECKOUT
from tests.rigs.other_build import make_other_build

UP_S = 120.0
COMPILED = os.environ.get("AWSOMEFSD_BINARY", "")
_BEFORE = 'echo $$ > "$GROUP" && exec unshare --mount --cgroup --propagation unchanged sh -c "$@"'  # as a container: its group is its root
_IN_POD = """set -e; mount -t tmpfs image "$IMAGE"
if [ -n "$COMPILED" ]; then cp -r "${COMPILED%/*}/." "$IMAGE/"; echo "$VERSION" > "$IMAGE/build"
else cp -a "$FROM/awsomefsd" "$IMAGE/"; echo "__version__ = '$VERSION'" >> "$IMAGE/awsomefsd/__init__.py"; fi
cd /; exec "$@"
"""


def group_root() -> Path | None:
    """Where cgroup v2 is, if groups can be made there."""
    mounts = enter_host.hierarchies(Path("/proc/self/mountinfo").read_text())
    root = next((Path(place) for place, is_v2, _ in mounts if is_v2), None)
    return root if root is not None and os.access(root, os.W_OK) and (root / "cgroup.procs").exists() else None


def shared(directory: Path, kind: str) -> None:
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    subprocess.run(["mount", f"--make-{kind}", directory], check=True)


class Pod:
    """The daemon of `node` in a pod of its own."""

    def __init__(self, node: Node, root: Path, init: int, version: str) -> None:
        self.node = node
        self.version = __version__ if COMPILED else version  # compiled, only the bytes of the build can be others
        self.group = root / f"afs-pod-{os.getpid()}-{time.monotonic_ns()}"
        self.group.mkdir()
        self.log = node.log / f"pod-{self.group.name}.log"
        image, built = node.directory / "image", node.directory / "built"
        if not COMPILED and version != __version__:
            other = node.directory / f"built-{version}"
            built = other if other.exists() else make_other_build(other, version, built)
        env = node.environment() | {procs.MARK: str(node.directory), "PYTHONPATH": str(image), "AWSOMEFSD_TEST_INIT": str(init)}
        env |= {"GROUP": str(self.group / "cgroup.procs"), "IMAGE": str(image), "FROM": str(built), "VERSION": version}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env["COMPILED"] = os.path.abspath(COMPILED) if COMPILED else ""
        argv = [str(image / "awsomefsd"), "run"] if COMPILED else [sys.executable, "-m", "awsomefsd", "run"]
        env |= {"AWSOMEFSD_STATE_DIR": str(node.state), "AWSOMEFSD_RUN_DIR": str(node.run)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", _BEFORE, "pod", _IN_POD, "pod", *argv],
                env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def await_words(self, words: str, timeout_s: float = UP_S) -> float:
        """When they were seen in its log."""

        def seen() -> bool:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3_000:]
            return words in self.log.read_text(errors="replace")

        await_true(f"{words!r} in {self.log}", seen, timeout_s)
        return time.monotonic()

    def logged(self, event: str, field: str) -> list[str]:
        """A field of each record of an event."""
        rows = [row for row in self.log.read_text(errors="replace").splitlines() if event in row]
        return [found.group(1) for row in rows if (found := re.search(rf'\b{field}="?([^\s"]+)', row))]

    def kill(self) -> float:
        """SIGKILL to everything in its group, as the end of a container does it; when that was."""
        now = time.monotonic()
        (self.group / "cgroup.kill").write_text("1")
        self.process.wait(60)
        await_true("the end of the pod's group", lambda: not (self.group / "cgroup.procs").read_text(), 60)
        await_true("a group that can be removed", self._remove_group, 60)
        return now

    def _remove_group(self) -> bool:
        try:
            self.group.rmdir()
        except OSError:  # the last of its processes is not quite gone
            return False
        return True


class App:
    """A program of another pod: its own mount namespace, from which nothing comes back, and to which nothing goes."""

    def __init__(self, name: str, log: Path, *argv: str | Path, env: dict[str, str] | None = None) -> None:
        self.name, self.out = name, log / f"app-{name}.log"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", *map(str, argv)], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})}, start_new_session=True,
            )  # fmt: skip

    def text(self) -> str:
        return self.out.read_text(errors="replace")

    def runs(self) -> bool:
        return self.process.poll() is None

    def end(self) -> str:
        """It checks everything once more when it is told to end; what it said."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(120)
        assert code == 0, f"{self.name} ended with {code}: {self.text()[-3_000:]}"
        return self.text()

    def last(self) -> dict[str, Any]:
        return dict(json.loads(self.end().splitlines()[-1]))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class PodNode:
    """A node on which the daemon runs in pods."""

    def __init__(self, node: Node, root: Path) -> None:
        self.node, self.root = node, root
        for name, kind in (("kubelet", "shared"), ("image", "private")):
            shared(node.directory / name, kind)
        if not COMPILED:  # with its bytecode, as every installed program has it; a start would compile a second long otherwise
            shutil.copytree(CHECKOUT / "awsomefsd", node.directory / "built" / "awsomefsd", ignore=shutil.ignore_patterns("__pycache__"))
            compileall.compile_dir(node.directory / "built", quiet=1)
        self.init = subprocess.Popen(["sleep", "infinity"], start_new_session=True)
        self.pods: list[Pod] = []
        self.apps: list[App] = []

    def pod(self, version: str) -> Pod:
        pod = Pod(self.node, self.root, self.init.pid, version)
        self.pods.append(pod)
        return pod

    def app(self, name: str, *argv: str | Path, **env: str) -> App:
        app = App(name, self.node.log, *argv, env=env)
        self.apps.append(app)
        return app

    def close(self) -> None:
        for app in self.apps:
            app.close()
        for pod in self.pods:
            if pod.group.exists():
                pod.kill()
        self.node.kill_everything()
        self.init.kill()
        self.init.wait()
        with open("/proc/self/mounts") as table:
            below = [row.split(" ")[1] for row in table if row.split(" ")[1].startswith(f"{self.node.directory}/")]
        for place in reversed(below):
            subprocess.run(["umount", "-i", "-l", place], check=False, capture_output=True)
        with contextlib.suppress(OSError):  # another run's keeper may be in it
            (self.root / enter_host.GROUP).rmdir()


@contextlib.contextmanager
def pod_node(node: Node, root: Path) -> Iterator[PodNode]:
    made = PodNode(node, root)
    try:
        yield made
    finally:
        made.close()
