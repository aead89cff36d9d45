"""kubectl as the trial's administrator, from the control plane's namespace: objects as Python values, and waiting for what they say."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

from buildtools.kubernetes.rig import Rig, await_true
from buildtools.say import BuildError

CALL_S = 120.0
Object = dict[str, Any]


class Kubectl:
    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def argv(self, *words: str) -> list[str]:
        return self._rig.in_hub(self._rig.bin / "kubectl", f"--kubeconfig={self._rig.kubeconfig}", *words)

    def __call__(self, *words: str, stdin: str | None = None, timeout_s: float = CALL_S) -> str:
        """Standard output; BuildError with what it said when it fails."""
        try:
            done = subprocess.run(
                self.argv(*words), input=stdin or "", capture_output=True, text=True, timeout=timeout_s, check=False,
                env=self._rig.environment("kubectl"),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise BuildError(f"kubectl {' '.join(words)}: no end within {timeout_s:.0f} s") from None
        if done.returncode:
            raise BuildError(f"kubectl {' '.join(words)} ended with {done.returncode}: {(done.stderr + done.stdout).strip()[-1_500:]}")
        return done.stdout

    def apply(self, *objects: Object) -> None:
        self("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def create(self, *objects: Object) -> None:
        self("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def get(self, kind: str, *words: str) -> list[Object]:
        told = json.loads(self("get", kind, *words, "-o", "json"))
        return list(told["items"]) if "items" in told else [told]

    def one(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        said = self("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return dict(json.loads(said)) if said.strip() else None

    def running(self, name: str, namespace: str = "default") -> bool:
        """The pod runs and all its containers are ready."""
        pod = self.one("pod", name, namespace)
        return pod is not None and any(row["type"] == "Ready" and row["status"] == "True" for row in pod["status"].get("conditions", []))

    def await_running(self, names: Iterable[str], timeout_s: float, namespace: str = "default") -> float:
        """Seconds until all these pods are ready; says why one is not."""
        wanted = set(names)

        def all_ready() -> bool:
            ready = {pod["metadata"]["name"] for pod in self.get("pods", "-n", namespace) if is_ready(pod)}
            return wanted <= ready

        began = time.monotonic()
        try:
            await_true(f"pods {sorted(wanted)} are ready", all_ready, timeout_s)
        except BuildError as err:
            raise BuildError(f"{err}\n{self.why(namespace)}") from None
        return time.monotonic() - began

    def why(self, namespace: str = "default") -> str:
        """Pods and the last warnings of a namespace, for people."""
        pods = self("get", "pods", "-n", namespace, "-o", "wide")
        rows = self("get", "events", "-n", namespace, "--field-selector=type=Warning", "--sort-by=.lastTimestamp").splitlines()
        return "\n".join([pods, *rows[-12:]])

    def await_gone(self, kind: str, name: str, timeout_s: float, namespace: str = "default") -> float:
        return await_true(f"{kind} {name} is gone", lambda: self.one(kind, name, namespace) is None, timeout_s, 0.1)


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(row["type"] == "Ready" and row["status"] == "True" for row in conditions)


def repeat(test: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it came to hold; for what may be refused meanwhile."""
    try:
        await_true("", test, timeout_s)
    except BuildError:
        return False
    return True
