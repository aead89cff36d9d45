"""Claims and pods of a trial, and what the pods say: the writer that checks, fio with verification on files and on a block device."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

from buildtools.kubernetes.images import LOAD
from buildtools.kubernetes.kubectl import Kubectl, Object
from buildtools.kubernetes.rig import await_true
from buildtools.say import BuildError

SPACE = "trial"
DATA = "/data"
FIO = (
    "trap 'exit 0' TERM; while :; do fio --name=v --filename={file} --size={size} --rw=randwrite --bs=4k --verify=crc32c --verify_fatal=1 "
    "--rate=400k --end_fsync=1 {more} --output=/tmp/out & wait $!; code=$?; [ $code = 0 ] && echo fio ok || {{ [ $code -gt 128 ] || "
    "{{ echo error fio $code; tail -5 /tmp/out; }}; }}; done"
)
_SLOW = re.compile(r"^slow (\d+) at ([\d.]+) (.*)$", re.MULTILINE)
LAST = re.compile(r"^acked (\d+) ops (\d+) errors (\d+) longest_ms (\d+)$", re.MULTILINE)


def claim(name: str, *, size: str = "64Mi", mode: str = "ReadWriteOnce", block: bool = False) -> Object:
    asked: dict[str, Any] = {"accessModes": [mode], "storageClassName": "awsomefs", "resources": {"requests": {"storage": size}}}
    if block:
        asked["volumeMode"] = "Block"
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": SPACE}, "spec": asked}


def pod(
    name: str, command: str, claims: dict[str, str], *, node: str = "", block: bool = False, grace_s: int = 5, pause_ms: int = 20
) -> Object:
    """`claims`: place in the pod -> name of the claim; `command` is a shell's."""
    volumes = [{"name": f"v{at}", "persistentVolumeClaim": {"claimName": wanted}} for at, wanted in enumerate(claims.values())]
    places = [{"name": f"v{at}", ("devicePath" if block else "mountPath"): place} for at, place in enumerate(claims)]
    container: dict[str, Any] = {
        "name": "load", "image": LOAD, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", command],
        ("volumeDevices" if block else "volumeMounts"): places, "env": [{"name": "PAUSE_MS", "value": str(pause_ms)}],
    }  # fmt: skip
    asked: dict[str, Any] = {
        "containers": [container],
        "volumes": volumes,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_s,
    }
    if node:
        asked["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SPACE, "labels": {"trial": "load"}}, "spec": asked}


def namespace() -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}}


@dataclass
class Said:
    """What the writers and fio have said so far."""

    operations: int = 0
    errors: list[str] = field(default_factory=list)
    slow: list[tuple[float, float, str]] = field(default_factory=list)  # began (epoch), seconds, step
    acked: dict[str, int] = field(default_factory=dict)
    fio_rounds: int = 0

    def longest_s(self, began: float, ended: float) -> float:
        """The longest step that was under way between these times (0.0: none over half a second)."""
        return max((took for at, took, _ in self.slow if at + took >= began and at <= ended), default=0.0)


class Load:
    """Three writers in one ReadWriteMany volume, one a node; fio on a file of a ReadWriteOnce volume; fio on a block volume."""

    def __init__(self, kubectl: Kubectl, nodes: list[str]) -> None:
        self._kubectl, self._nodes = kubectl, nodes
        self.writers = [f"writer-{name}" for name in nodes]
        self.fio = ["fio-file", "fio-block"]

    def objects(self) -> tuple[list[Object], list[Object]]:
        claims = [claim("shared", size="256Mi", mode="ReadWriteMany"), claim("own"), claim("device", block=True)]
        made = [pod(f"writer-{name}", f"exec /writer {DATA}/{name}", {DATA: "shared"}, node=name) for name in self._nodes]
        made.append(pod("fio-file", FIO.format(file=f"{DATA}/f", size="8m", more=""), {DATA: "own"}, node=self._nodes[-1]))
        block = FIO.format(file="/dev/trial", size="8m", more="--direct=1")
        made.append(pod("fio-block", block, {"/dev/trial": "device"}, node=self._nodes[0], block=True))
        return claims, made

    def start(self) -> float:
        claims, made = self.objects()
        self._kubectl.apply(namespace())
        self._kubectl.apply(*claims, *made)
        return self._kubectl.await_running([*self.writers, *self.fio], 180, SPACE)

    def said(self) -> Said:
        told = Said()
        for name in [*self.writers, *self.fio]:
            try:
                text = self._kubectl("logs", "-n", SPACE, name, "--tail=-1")
            except BuildError as err:  # its node is down
                told.slow.append((time.time(), 0.0, str(err)))
                continue
            told.errors += [f"{name}: {row}" for row in text.splitlines() if row.startswith("error ")]
            told.slow += [(float(at), int(ms) / 1e3, f"{name} {what}") for ms, at, what in _SLOW.findall(text)]
            told.fio_rounds += text.count("fio ok")
            if last := LAST.findall(text)[-1:]:
                told.acked[name] = int(last[0][0])
                told.operations += int(last[0][1])
        return told

    def await_progress(self, timeout_s: float = 120) -> None:
        """Every writer that can be asked has finished rounds since now."""
        before = self.said().acked

        def further() -> bool:
            now = self.said().acked
            return all(now.get(name, 0) > at + 5 for name, at in before.items())

        await_true(f"writers go on (at {before})", further, timeout_s, 1.0)

    def end(self) -> None:
        self._kubectl("delete", "pods,pvc", "--all", "-n", SPACE, "--timeout=120s", timeout_s=300)
