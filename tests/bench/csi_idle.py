"""What an idle driver pod costs: `.venv/bin/python tests/bench/csi_idle.py [NODES] [SECONDS]` where nodes may be made (root, /dev/fuse).

Each node has the driver on and five volumes staged and published, and nobody uses them.  kubelet is played: its probes over the page of
metrics, as the chart sets them, and NodeGetVolumeStats of each volume once a minute.  Of the daemon, which is all that is in the pod:
processor time (as the scheduler counts it), wake-ups (voluntary switches) with the threads that woke most, and memory (PSS).  Beside it
what is outside of the pod.  With one node the metadata has one voter; with three each node is a voter, and all see one device.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from awsomefsd.csi.pb import csi_pb2 as pb  # noqa: E402
from buildtools import procs  # noqa: E402
from tests.bench.csi import pss_mib  # noqa: E402
from tests.conftest import making_clusters, making_nodes  # noqa: E402
from tests.csi.rig import Mode, Player, capability, cleared, playing  # noqa: E402
from tests.rigs.network_namespaces import found_static, start_on_one_disk  # noqa: E402

VOLUMES, SETTLE_S, SHOWN = 5, 20.0, 6
STATS_S = 60.0
METRICS = "127.0.0.1:19460"
# As the chart has them: liveness, readiness.
PROBES = (("/healthz", 30.0), ("/readyz", 20.0))
ALONE = capability(Mode.SINGLE_NODE_WRITER)


def counts(pid: int) -> tuple[dict[str, float], Counter[str]]:
    """Processor time in seconds and wake-ups of the process, and the wake-ups of each thread by name."""
    total, threads = Counter[str](), Counter[str]()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            rows = dict(row.split(":", 1) for row in (task / "status").read_text().splitlines())
            total["seconds"] += int((task / "schedstat").read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        woke = int(rows["voluntary_ctxt_switches"])
        total["wake-ups"] += woke
        threads[f"{rows['Name'].strip()}-{task.name}"] += woke
    return dict(total), threads


class Kubelet:
    """Asks the driver of one node what kubelet asks of one that is idle."""

    def __init__(self, player: Player, namespace: str) -> None:
        self.player, self._namespace = player, namespace
        self._volumes: list[tuple[str, str]] = []
        self._due = dict.fromkeys([*(path for path, _ in PROBES), "stats"], 0.0)
        self.asked: Counter[str] = Counter()

    def use(self, number: int) -> None:
        volume = self.player.create(f"pvc-{number}", cap=ALONE)
        self.player.stage(volume, ALONE)
        place = self.player.publish(volume, f"pod-{number}", ALONE)
        (place / "file").write_text("x")
        self._volumes.append((volume, f"pod-{number}"))

    def ask(self, now: float) -> None:
        """Asks what is due."""
        for path, every_s in PROBES:
            if now >= self._due[path]:
                self._due[path] = now + every_s
                self._probe(path)
        if now >= self._due["stats"]:
            self._due["stats"] = now + STATS_S
            for volume, pod in self._volumes:
                self.player.call("NodeGetVolumeStats", pb.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=self.player.target(pod)))
                self.asked["NodeGetVolumeStats"] += 1

    def _probe(self, path: str) -> None:
        words = f"import urllib.request as r; print(r.urlopen('http://{METRICS}{path}', timeout=20).status)"
        entering = ["ip", "netns", "exec", self._namespace] if self._namespace else []
        found = subprocess.run([*entering, sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=60)
        assert found.stdout == "200\n", found
        self.asked[path] += 1

    def end(self) -> None:
        for volume, pod in self._volumes:
            self.player.unpublish(volume, pod)
            self.player.unstage(volume)
            self.player.delete(volume)


def measure(kubelets: list[Kubelet], seconds: float) -> None:
    every = [one.player.node.pid("daemon") for one in kubelets]
    before, began = [counts(pid) for pid in every], time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        for one in kubelets:
            one.ask(now)
        time.sleep(1)
    took = time.monotonic() - began
    load = os.getloadavg()[0]
    for one, pid, (old, woken) in zip(kubelets, every, before, strict=True):
        new, wakes = counts(pid)
        rate = {key: (new[key] - old[key]) / took for key in new}
        most = ", ".join(f"{name} {count / took:.1f}" for name, count in (wakes - woken).most_common(SHOWN))
        asked = ", ".join(f"{count} {name}" for name, count in one.asked.items())
        name = one.player.node.directory.name
        print(f"{name}: daemon {rate['seconds'] * 100:.2f} % of a core, {rate['wake-ups']:.1f} wake-ups a second, "
              f"{pss_mib(pid):.1f} MiB (PSS); {took:.0f} s, load {load:.1f}; asked: {asked}")  # fmt: skip
        print(f"    woke most, a second: {most}")
        beside = Counter[str]()
        for other, role in procs.owned(str(one.player.node.directory)).items():
            if role != "daemon":
                beside[f"{role or 'forker'}s"] += round(pss_mib(other))
        print(f"    outside of the pod, MiB: {dict(beside)}")


def run(players: list[Player], namespaces: list[str], seconds: float) -> None:
    kubelets = [Kubelet(player, name) for player, name in zip(players, namespaces, strict=True)]
    for one in kubelets:
        for number in range(VOLUMES):
            one.use(players.index(one.player) * VOLUMES + number)
    time.sleep(SETTLE_S)  # freed memory is given back by a look each second, and each node looks at its mounts for 10 s
    measure(kubelets, seconds)
    for one in kubelets:
        one.end()


def main(count: int, seconds: float) -> None:
    with ExitStack() as stack:
        if count == 1:
            node = stack.enter_context(contextmanager(making_nodes)())(up=False, size_bytes=16 << 30)
            node.settings["AWSOMEFSD_METRICS_LISTEN"] = METRICS
            run([stack.enter_context(playing(node))], [""], seconds)
            return
        cluster = stack.enter_context(contextmanager(making_clusters)())(count, size_bytes=16 << 30)
        found_static(cluster)
        players = [Player(node) for node in cluster.nodes]
        for player in players:
            stack.enter_context(cleared(player))
            player.node.settings["AWSOMEFSD_METRICS_LISTEN"] = METRICS
        start_on_one_disk(cluster)
        run(players, [cluster.namespace(node) for node in cluster.nodes], seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, float(sys.argv[2]) if len(sys.argv) > 2 else 60.0)
