"""Times of a trial: claim to running pod, deletion to no PersistentVolume, expansion, and many volumes with all daemons killed once."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable

from buildtools.kubernetes.install import Install
from buildtools.kubernetes.kubectl import Kubectl
from buildtools.kubernetes.rig import Rig, await_true
from buildtools.kubernetes.workload import DATA, LAST, SPACE, claim, namespace, pod
from buildtools.say import BuildError, good, line, step

TRIES = 5
PODS, EACH = 20, 10  # 200 volumes on three nodes
PAUSE_MS = 5_000
MANY_S = 900.0
EXPANDED_S = 200.0


class Figures:
    def __init__(self, rig: Rig, kubectl: Kubectl, install: Install) -> None:
        self._rig, self._kubectl, self._install = rig, kubectl, install
        self.rows: list[str] = []
        self.failures: list[str] = []

    def _say(self, text: str) -> None:
        self.rows.append(f"{text}; load {os.getloadavg()[0]:.0f}")
        good(self.rows[-1])

    @staticmethod
    def _text(times: list[float]) -> str:
        return f"{', '.join(f'{one:.1f}' for one in times)} s (median {statistics.median(times):.1f})"

    def run(self) -> None:
        step("Figures")
        self._kubectl.apply(namespace())
        for act in (self.start_and_delete, self.expand_files, self.expand_block, self.many):
            try:
                act()
            except BuildError as err:
                self.failures.append(f"{act.__name__}: {err}")
                line(f"  {self.failures[-1]}")

    def start_and_delete(self) -> None:
        """The images are there; the scheduler chooses the node."""
        started, gone = [], []
        for turn in range(TRIES):
            name = f"try-{turn}"
            began = time.monotonic()
            self._kubectl.create(claim(name), pod(name, "exec sleep 10000", {DATA: name}, grace_s=0))
            await_true(f"pod {name} runs", lambda name=name: self._kubectl.running(name, SPACE), 120, 0.05)  # type: ignore[misc]
            started.append(time.monotonic() - began)
            bound = self._kubectl.one("pvc", name, SPACE)
            volume = str(bound["spec"]["volumeName"]) if bound else ""
            began = time.monotonic()
            self._kubectl("delete", "pod,pvc", name, "-n", SPACE, "--wait=false")
            self._kubectl.await_gone("pv", volume, 120)
            gone.append(time.monotonic() - began)
        self._say(f"claim to running pod: {self._text(started)}")
        self._say(f"pod and claim deleted to no PersistentVolume: {self._text(gone)}")

    def _expand(self, name: str, block: bool, seen: Callable[[], bool]) -> list[float]:
        place = "/dev/trial" if block else DATA
        self._kubectl.create(claim(name, size="64Mi", block=block), pod(name, "exec sleep 10000", {place: name}, block=block, grace_s=0))
        self._kubectl.await_running([name], 120, SPACE)
        began = time.monotonic()
        self._kubectl("patch", "pvc", name, "-n", SPACE, "-p", json.dumps({"spec": {"resources": {"requests": {"storage": "128Mi"}}}}))
        times = [await_true("the pod sees it", seen, EXPANDED_S, 0.05)]

        def told() -> bool:
            found = self._kubectl.one("pvc", name, SPACE)
            return found is not None and found["status"]["capacity"]["storage"] == "128Mi"

        await_true("the claim says so", told, EXPANDED_S, 0.1)
        times.append(time.monotonic() - began)
        self._kubectl("delete", "pod,pvc", name, "-n", SPACE)
        return times

    def expand_files(self) -> None:
        def seen() -> bool:
            return int(self._kubectl("exec", "-n", SPACE, "grows", "--", "df", "-k", DATA).split()[-5]) >= 128 << 10

        pod_s, claim_s = self._expand("grows", False, seen)
        self._say(f"online expansion, files: seen in the pod after {pod_s:.1f} s, in the claim after {claim_s:.1f} s")

    def expand_block(self) -> None:
        def seen() -> bool:
            return int(self._kubectl("exec", "-n", SPACE, "grows-block", "--", "blockdev", "--getsize64", "/dev/trial")) >= 128 << 20

        pod_s, claim_s = self._expand("grows-block", True, seen)
        self._say(f"online expansion, block: seen in the pod after {pod_s:.1f} s, in the claim after {claim_s:.1f} s")

    def many(self) -> None:
        """Each volume has a writer; SIGKILL to all daemons at once."""
        began = time.monotonic()
        pods = [f"many-{number}" for number in range(PODS)]
        for name in pods:
            places = {f"{DATA}/{at}": f"{name}-{at}" for at in range(EACH)}
            command = " ".join(f"/writer {place}/w & " for place in places) + "wait"
            self._kubectl.create(*(claim(wanted, size="16Mi") for wanted in places.values()), pod(name, command, places, pause_ms=PAUSE_MS))
        self._kubectl.await_running(pods, MANY_S, SPACE)
        self._say(f"{PODS * EACH} volumes in {PODS} pods on three nodes: all run after {time.monotonic() - began:.0f} s")
        before = self._counts(pods)
        began = time.monotonic()
        self._install.kill_daemons(self._rig.names())
        self._install.await_ready()
        back = time.monotonic() - began
        await_true("every writer goes on", lambda: self._further(before, self._counts(pods)), MANY_S, 5.0)
        errors, longest = self._outcome(pods)
        self.failures += errors
        self._say(f"all daemons killed at once: {len(errors)} errors, longest step {longest:.1f} s, ready again after {back:.1f} s")
        began = time.monotonic()
        self._kubectl("delete", "pods,pvc", "--all", "-n", SPACE, "--wait=false")
        await_true("no PersistentVolume is left", lambda: not self._kubectl.get("pv"), MANY_S)
        self._say(f"{PODS * EACH} volumes deleted: the last was gone after {time.monotonic() - began:.0f} s")

    def _counts(self, pods: list[str]) -> dict[str, int]:
        """Lines of writers so far; each says one a second at most."""
        return {name: sum(int(row[1]) for row in LAST.findall(self._kubectl("logs", "-n", SPACE, name))[-EACH:]) for name in pods}

    @staticmethod
    def _further(before: dict[str, int], now: dict[str, int]) -> bool:
        return all(now[name] > count for name, count in before.items())

    def _outcome(self, pods: list[str]) -> tuple[list[str], float]:
        errors, longest = [], 0
        for name in pods:
            text = self._kubectl("logs", "-n", SPACE, name)
            errors += [f"{name}: {row}" for row in text.splitlines() if row.startswith("error ")]
            longest = max([longest, *(int(row[3]) for row in LAST.findall(text))])
        return errors, longest / 1e3
