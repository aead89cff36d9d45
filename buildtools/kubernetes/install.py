"""What an administrator does: the namespace, the Secret with a founding token, `helm install`, `device add --shared`."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from buildtools import binary, image, loops
from buildtools.kind import NAMESPACE
from buildtools.kubernetes.kubectl import Kubectl, is_ready
from buildtools.kubernetes.rig import NODES, Rig, await_true
from buildtools.nodes import program
from buildtools.say import CHECKOUT, BuildError, good, run, step

NAME = "awsomefs"
CHART = CHECKOUT / "packaging" / "helm" / "awsomefs"
DEVICE_BYTES = 8 << 30
FORM_S = 300.0
TOKEN_S = 180  # the founding token's life: a node that comes later must not need it
REMOVE_AFTER = "1m"


class Install:
    def __init__(self, rig: Rig, kubectl: Kubectl) -> None:
        self._rig, self._kubectl = rig, kubectl
        self._token_made = rig.place / "token-expires"  # when, as a time of the file

    def helm(self, *words: str | Path, timeout_s: float = 600) -> str:
        argv = [self._rig.bin / "helm", f"--kubeconfig={self._rig.kubeconfig}", "--namespace", NAME, *words]
        return run(self._rig.in_hub(*argv), what=f"helm {words[0]}", timeout_s=timeout_s, env=self._rig.environment("helm"))

    def everything(self) -> None:
        step("Installation by the chart")
        self.attach_device()
        self._kubectl.apply(json.loads(NAMESPACE))
        self.secret()
        took = self.chart()
        good(f"helm install; {NODES} driver pods ready after {took:.0f} s")
        self.add_device()
        good("device added: all nodes see it")

    def attach_device(self) -> str:
        if not self._rig.device_image.exists():
            with self._rig.device_image.open("wb") as file:
                file.truncate(DEVICE_BYTES)
        return loops.attach(self._rig.device_image)

    def secret(self) -> None:
        """On stdin, because arguments can be seen by others."""
        endpoints = [word for name in self._rig.names() for word in ("--endpoint", f"{self._rig.address(name)}:7440")]
        token = run(
            [*program(), "token", "generate", "--expect", str(NODES), "--ttl", f"{TOKEN_S}s", *endpoints], what="token generate"
        ).strip()
        self._token_made.touch()
        about = {"name": "awsomefs-token", "namespace": NAME}
        self._kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": about, "stringData": {"token": token}})

    def token_expires_s(self) -> float:
        """From now; negative when it has."""
        return self._token_made.stat().st_mtime + TOKEN_S - time.time()

    def chart(self, tag: str = "") -> float:
        """Install or upgrade; seconds until every driver pod is ready."""
        chosen = {
            "existingTokenSecret": "awsomefs-token",
            "image.pullPolicy": "Never",
            "image.repository": image.NAME,
            "image.tag": tag or binary.version(),
        }
        words = [word for name, value in chosen.items() for word in ("--set-string", f"{name}={value}")]
        words += ["--set", f"nodeKeeper.removeAfter={REMOVE_AFTER}"]
        words += ["--set", "driver.inlineVolumes.enabled=true"]  # off by default; the suite has specs for them
        self.helm("upgrade", "--install", NAME, CHART, *words)
        return self.await_ready()

    def await_ready(self, timeout_s: float = FORM_S, count: int = NODES) -> float:
        """So many pods of the driver, all ready, none ending, all of the template of now."""

        def all_ready() -> bool:
            found = self._kubectl.one("daemonset", "awsomefs-node", NAME)
            pods = self._kubectl.get("pods", "-n", NAME, "-l", "app.kubernetes.io/component=node")
            if found is None or len(pods) != count or not all(map(is_ready, pods)):
                return False
            status, generation = found["status"], found["metadata"]["generation"]
            return status.get("updatedNumberScheduled") == count and status.get("observedGeneration") == generation

        try:
            return await_true("the driver's pods are ready", all_ready, timeout_s)
        except BuildError as err:
            raise BuildError(f"{err}\n{self._kubectl.why(NAME)}\n{self.last_words()}") from None

    def last_words(self) -> str:
        said = []
        for pod in self.driver_pods().values():
            try:
                said.append(f"{pod}:\n" + self._kubectl("logs", "-n", NAME, pod, "--tail=15"))
            except BuildError as err:
                said.append(str(err))
        return "\n".join(said)

    def driver_pods(self) -> dict[str, str]:
        """Node -> its driver's pod, those that are not ending."""
        pods = self._kubectl.get("pods", "-n", NAME, "-l", "app.kubernetes.io/component=node")
        return {pod["spec"].get("nodeName", ""): pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}

    def awsomefsd(self, node: str, *words: str, timeout_s: float = 120) -> str:
        return self._kubectl("exec", "-n", NAME, self.driver_pods()[node], "--", "awsomefsd", *words, timeout_s=timeout_s)

    def add_device(self) -> None:
        device = self.attach_device()
        first = self._rig.names()[0]
        self.awsomefsd(first, "device", "add", device, "--shared")

        def seen(name: str) -> bool:
            rows = json.loads(self.awsomefsd(name, "device", "ls", "-o", "json"))
            return bool(rows) and all(row["path"] and row["state"] == "ok" for row in rows)

        for name in self._rig.names():
            await_true(f"{name} sees the device", lambda name=name: seen(name), FORM_S)  # type: ignore[misc]

    def volumes(self) -> list[str]:
        """The names of all volumes of the cluster."""
        return [str(row["name"]) for row in json.loads(self.awsomefsd(self._rig.names()[0], "volume", "ls", "-o", "json"))]

    def members(self) -> set[str]:
        """The names of the cluster's nodes."""
        return {str(row["name"]) for row in json.loads(self.awsomefsd(self._rig.names()[0], "node", "ls", "-o", "json"))}

    def leader(self) -> str:
        """The node whose daemon leads now."""
        for name in self._rig.names():
            rows = json.loads(self.awsomefsd(name, "node", "ls", "-o", "json"))
            if found := [row["name"] for row in rows if row.get("leader")]:
                return str(found[0])
        raise BuildError("nobody leads")

    def restarts(self, pod: str) -> int:
        """How often its containers were started again; -1 when it is gone."""
        found = self._kubectl.one("pod", pod, NAME)
        return sum(row["restartCount"] for row in found["status"].get("containerStatuses", [])) if found else -1

    def kill_daemons(self, nodes: list[str]) -> None:
        """SIGKILL to all of them at once; returns when kubelet has started all of them again."""
        pods = [self.driver_pods()[name] for name in nodes]
        before = [self.restarts(pod) for pod in pods]
        for pid in [self.daemon(name) for name in nodes]:
            os.kill(pid, signal.SIGKILL)
        await_true(
            f"{', '.join(pods)} are started again",
            lambda: all(self.restarts(pod) > count for pod, count in zip(pods, before, strict=True)),
            FORM_S,
            0.2,
        )

    def daemon(self, node: str) -> int:
        """The daemon's process in the driver's pod of a node, by its number outside."""
        pod = self._kubectl.one("pod", self.driver_pods()[node], NAME)
        identity = pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2] if pod else "none"
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if identity in (place / "cgroup").read_text():
                    found.append(int(place.name))
            except OSError:
                continue
        if not found:
            raise BuildError(f"no process of the container {identity[:12]} on {node}")
        return min(found)
