"""`build.py dev-env` and `deploy`: a Kubernetes of containers (kind) whose nodes share one raw device, and the chart in it.

The device is a loop device over a sparse file in the directory; the cluster is called awsomefs.  Both are found again by name and backing
file, so both commands may be called again.  Untested against a real kind (docs/CAPABILITIES.md): tests hold only which commands are run,
that the tools know their words, and what is said when one is missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from buildtools import binary, image, loops
from buildtools.nodes import program
from buildtools.say import CHECKOUT, BuildError, good, line, step

CLUSTER = "awsomefs"
NODES = 3
MARKER = ".awsomefs-kind"
_WHERE = {
    "kind": "https://kind.sigs.k8s.io",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "helm": "https://helm.sh, or: go install helm.sh/helm/v3/cmd/helm@v3.16.4",
}


def engine() -> str:
    """docker or podman; BuildError where neither answers."""
    found = [name for name in ("docker", "podman") if shutil.which(name)]
    for name in found:
        if subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    if found:
        raise BuildError(f"{found[0]} is installed, and no daemon of it answers: {found[0]} info")
    raise BuildError("neither docker nor podman is installed: https://docs.docker.com/engine/install")


def require(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise BuildError("not installed: " + "; ".join(f"{tool} ({_WHERE[tool]})" for tool in missing))


def _run(*words: str | Path, stdin: str | None = None, timeout_s: float = 900) -> str:
    argv = list(map(str, words))
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{argv[0]} {argv[1]}: no end within {timeout_s:.0f} s") from None
    if done.returncode:
        raise BuildError(f"{' '.join(argv[:4])} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2_000:]}")
    return done.stdout


def config(disk: str) -> str:
    return (CHECKOUT / "packaging" / "k8s" / "kind.yaml").read_text().replace("@DISK@", disk)


def dev_env(directory: Path, size_bytes: int) -> int:
    step("A cluster of containers with one device that all see")
    require("kind", "kubectl")
    engine()
    if not loops.usable():
        raise BuildError("no loop devices: needs root and /dev/loop-control (modprobe loop)")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).write_text("a device of build.py dev-env; build.py dev-env --remove deletes this directory\n")
    image = directory / "device.img"
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(size_bytes)
    disk = loops.attach(image)
    good(f"{disk} over {image}")
    if CLUSTER not in _run("kind", "get", "clusters").split():
        _run("kind", "create", "cluster", "--config", "-", "--wait", "300s", stdin=config(disk))
    good(f"cluster {CLUSTER}, context kind-{CLUSTER}")
    line("  next: python3 build.py image; python3 build.py deploy")
    return 0


def remove(directory: Path) -> int:
    """The cluster, the loop device and the directory; only one that dev_env has made."""
    require("kind")
    _run("kind", "delete", "cluster", "--name", CLUSTER)
    if (directory / MARKER).exists():
        for device in loops.of_file(directory / "device.img"):
            loops.detach(device)
        shutil.rmtree(directory)
    good("removed")
    return 0


def _kubectl(*words: str, stdin: str | None = None) -> str:
    return _run("kubectl", "--context", f"kind-{CLUSTER}", *words, stdin=stdin)


def deploy() -> int:
    step("The chart in the cluster of build.py dev-env")
    require("kind", "kubectl", "helm")
    engine()
    archive = image.path_of(binary.directory())
    if not archive.exists():
        raise BuildError(f"{archive} is not there: python3 build.py image makes it")
    if CLUSTER not in _run("kind", "get", "clusters").split():
        raise BuildError(f"there is no kind cluster {CLUSTER}: python3 build.py dev-env makes it")
    _run("kind", "load", "image-archive", archive, "--name", CLUSTER)
    good(f"{archive.name} is on the nodes")
    _kubectl("apply", "-f", "-", stdin=NAMESPACE)
    if not _kubectl("-n", CLUSTER, "get", "secret", "awsomefs-token", "--ignore-not-found", "-o", "name").strip():
        _kubectl("-n", CLUSTER, "create", "-f", "-", stdin=_secret())
    chart = CHECKOUT / "packaging" / "helm" / "awsomefs"
    chosen = ["existingTokenSecret=awsomefs-token", "image.pullPolicy=Never"]
    chosen += [f"image.repository={image.NAME}", f"image.tag={binary.version()}"]
    words: list[str] = [word for value in chosen for word in ("--set-string", value)]
    _run("helm", "--kube-context", f"kind-{CLUSTER}", "upgrade", "--install", CLUSTER, chart, "--namespace", CLUSTER, *words)
    _kubectl("-n", CLUSTER, "rollout", "status", "daemonset/awsomefs-node", "--timeout", "600s")
    good("nodes run")
    line(f"  next: kubectl -n {CLUSTER} exec daemonset/awsomefs-node -- awsomefsd device add /dev/awsomefs-disk --shared")
    return 0


NAMESPACE = json.dumps({
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": CLUSTER, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
})  # fmt: skip


def _secret() -> str:
    """With a founding token for the nodes there are; on stdin, because arguments can be seen by others."""
    path = 'jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}'
    addresses: Sequence[str] = _kubectl("get", "nodes", "-o", path).split()
    endpoints = [word for address in addresses for word in ("--endpoint", f"{address}:7440")]
    token = _run(*program(), "token", "generate", "--expect", str(len(addresses) or NODES), *endpoints).strip()
    metadata = {"name": "awsomefs-token", "namespace": CLUSTER}
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"token": token}})
