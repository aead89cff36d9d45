"""Three machines with containerd and kubelet: each has network, mount, pid, uts and ipc namespaces, its own /run and /var/lib, its own
process 1.

A node that crashes is its process 1 killed: the kernel ends everything in the pid namespace, and its mounts go with the mount
namespace.  What is not the node's own as on a real machine: the kernel, /dev with its loop devices, and the hierarchies of control
groups, of which each node has a folder.  With control groups of version 2 this is written and was not tried.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from buildtools import loops
from buildtools.kubernetes.control_plane import PODS, ControlPlane
from buildtools.kubernetes.images import PAUSE
from buildtools.kubernetes.kubectl import Kubectl, is_ready
from buildtools.kubernetes.rig import OWN, Rig, await_true, cgroup_roots
from buildtools.say import BuildError, good, run, step

UP_S = 60.0
READY_S = 180.0
IMPORT_S = 900.0
CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin")
_CONTAINERD = """version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def cni_folder() -> str:
    found = next((folder for folder in CNI_FOLDERS if os.path.exists(f"{folder}/bridge")), None)
    if found is None:
        raise BuildError("the CNI plugin `bridge` is not there: apt-get install -y containernetworking-plugins")
    return found


class KubeNodes:
    def __init__(self, rig: Rig, plane: ControlPlane, kubectl: Kubectl) -> None:
        self._rig, self._plane, self._kubectl = rig, plane, kubectl

    # --- one node -------------------------------------------------------------------------------------------------------------
    def _write(self, name: str) -> None:
        place = self._rig.node_place(name)
        (place / "cni").mkdir(parents=True, exist_ok=True)
        network = {
            "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isGateway": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": f"{PODS}.{name[2:]}.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }  # fmt: skip
        (place / "cni" / "10-pods.conf").write_text(json.dumps(network))
        (place / "containerd.toml").write_text(_CONTAINERD.format(pause=PAUSE, cni=cni_folder()))
        (place / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # nobody answers: no name of the outside is asked for
        (place / "umount").write_text('#!/bin/sh\nexec umount -i "$@"\n')
        (place / "umount").chmod(0o755)
        (place / "kubelet.json").write_text(json.dumps(self._kubelet(name)))

    def _kubelet(self, name: str) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._rig.cgroup(name)}", "failCgroupV1": False, "failSwapOn": False, "maxOpenFiles": 20_000,
            "makeIPTablesUtilChains": False, "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": str(self._plane.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"}, "volumeStatsAggPeriod": "10s", "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"}, "maxPods": 250,
        }  # fmt: skip

    def _make_cgroups(self, name: str) -> None:
        for root in cgroup_roots():
            folder = root / self._rig.cgroup(name)
            folder.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (root / file).exists() and not (folder / file).read_text().strip():
                    (folder / file).write_text((root / file).read_text())
            if (root / "cgroup.controllers").exists():
                wanted = [
                    word for word in ("cpu", "cpuset", "memory", "pids", "io") if word in (root / "cgroup.controllers").read_text().split()
                ]
                for place in (root, folder):
                    (place / "cgroup.subtree_control").write_text(" ".join(f"+{word}" for word in wanted))

    def boot(self, name: str) -> None:
        """Namespaces, containerd, kubelet; the state of a node that was there before is found again."""
        self._write(name)
        self._make_cgroups(name)
        place = self._rig.node_place(name)
        (place / "ready").unlink(missing_ok=True)
        words = [*self._rig.network.entering(int(name[2:])), "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        words += [str(self._rig.bin / "init"), "sh", str(OWN / "node.sh"), name, str(place)]
        child = self._rig.spawn(f"{name}/init", words)
        await_true(
            f"the namespaces of {name} (see {self._rig.logs})", lambda: (place / "ready").exists() or child.poll() is not None, UP_S, 0.1
        )
        self.start_containerd(name)
        self.start_kubelet(name)

    def process_1(self, name: str) -> int:
        """Its number outside; BuildError when the node is down."""
        found = self._rig.of_role(f"{name}/init", "init")
        if not found:
            raise BuildError(f"node {name} is down: see {self._rig.logs}")
        return min(found)

    def inside(self, name: str, *argv: str | Path) -> list[str]:
        return ["nsenter", f"--target={self.process_1(name)}", "--mount", "--pid", "--net", "--uts", "--ipc", *map(str, argv)]

    def start_containerd(self, name: str) -> None:
        config = self._rig.node_place(name) / "containerd.toml"
        self._rig.spawn(f"{name}/containerd", self.inside(name, "containerd", "--config", config, "--log-level=warn"))
        probe = self.inside(name, "ctr", "version")
        await_true(f"containerd of {name} answers", lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0, UP_S)

    def start_kubelet(self, name: str) -> None:
        words = [f"{self._rig.bin}/kubelet", f"--config={self._rig.node_place(name)}/kubelet.json", f"--hostname-override={name}"]
        words += [f"--kubeconfig={self._plane.pki}/{name}.conf", f"--node-ip={self._rig.address(name)}", "--v=2"]
        self._rig.spawn(f"{name}/kubelet", self.inside(name, *words))

    def crash(self, name: str) -> None:
        """Everything of the node at once, as by the power switch; its disk stays."""
        devices = self._rig.loops_of_volumes([name])
        os.kill(self.process_1(name), signal.SIGKILL)  # the kernel ends all of its pid namespace with it
        await_true(f"nothing of {name} runs", lambda: not self._rig.of_role(f"{name}/init", "unshare"), UP_S, 0.05)
        for device in devices:
            loops.detach(device)

    # --- all of them ----------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        step("Nodes")
        for name in self._rig.names():
            self.boot(name)
        for name in self._rig.names():
            for image in self.images():
                self.import_image(name, image)
        self.await_ready()
        good(f"{len(self._rig.names())} nodes are Ready, {len(self.images())} images on each")

    def images(self) -> list[Path]:
        """Those that every node has had since its begin."""
        return [*sorted((self._rig.cache / "images").glob("*.k8s.tar")), self._rig.place / "image.tar"]

    def import_image(self, name: str, image: Path) -> None:
        words = self.inside(name, "nice", "-n", "10", "ctr", "-n", "k8s.io", "images", "import", "--all-platforms", image)
        run(words, what=f"ctr images import {image.name} on {name}", timeout_s=IMPORT_S)

    def await_ready(self, names: Iterable[str] = (), timeout_s: float = READY_S) -> float:
        wanted = set(names or self._rig.names())
        return await_true(
            "all nodes are Ready",
            lambda: wanted <= {node["metadata"]["name"] for node in self._kubectl.get("nodes") if is_ready(node)},
            timeout_s,
        )
