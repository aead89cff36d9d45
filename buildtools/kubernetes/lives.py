"""What happens to a driver in its life, under load: killed, deleted, upgraded, rolled back, its node crashed, uninstalled and installed
again.

Each life is an event and an account: how long until the driver was whole again, what errors applications saw from its begin to its end,
and the longest step of theirs that was under way meanwhile.  A step is one call of the writer (workload.py); only those over half a
second are counted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from buildtools import binary, image
from buildtools.kubernetes import images
from buildtools.kubernetes.install import NAME, REMOVE_AFTER, Install
from buildtools.kubernetes.kube_nodes import KubeNodes
from buildtools.kubernetes.kubectl import Kubectl
from buildtools.kubernetes.rig import LATER, NODES, Rig, await_true
from buildtools.kubernetes.workload import DATA, SPACE, Load, claim, pod
from buildtools.say import BuildError, bad, good, line, step

SETTLE_S = 5.0
HANDED_OVER_S = 120.0
REMOVED_S = 300.0
MOVED_S = 300.0


@dataclass
class Life:
    event: str
    back_s: float
    stall_s: float
    errors: list[str]

    def text(self) -> str:
        errors = f"{len(self.errors)} errors" + (f" ({self.errors[0]})" if self.errors else "")
        stall = f"longest stall {self.stall_s:.1f} s" if self.stall_s else "no step over 0.5 s"
        return f"{self.event}: {errors}, {stall}; whole again after {self.back_s:.1f} s; load {os.getloadavg()[0]:.0f}"


class Lives:
    def __init__(self, rig: Rig, kubectl: Kubectl, nodes: KubeNodes, install: Install) -> None:
        self._rig, self._kubectl, self._nodes, self._install = rig, kubectl, nodes, install
        self._load = Load(kubectl, rig.names())
        self.done: list[Life] = []
        self.failures: list[str] = []

    # --- events ---------------------------------------------------------------------------------------------------------------
    def _follower(self) -> str:
        leader = self._install.leader()
        return next(name for name in self._rig.names() if name != leader)

    def kill_leader(self) -> None:
        self._install.kill_daemons([self._install.leader()])

    def kill_follower(self) -> None:
        self._install.kill_daemons([self._follower()])

    def delete_pod(self) -> None:
        self._kubectl("delete", "pod", "-n", NAME, self._install.driver_pods()[self._follower()])

    def delete_pod_by_force(self) -> None:
        self._kubectl("delete", "pod", "-n", NAME, self._install.driver_pods()[self._follower()], "--force", "--grace-period=0")

    def kill_kubelet(self) -> None:
        name = self._rig.names()[1]
        for pid in self._rig.of_role(f"{name}/kubelet", "kubelet"):
            os.kill(pid, signal.SIGKILL)
        self._nodes.start_kubelet(name)
        time.sleep(SETTLE_S)
        self._nodes.await_ready()

    def upgrade(self) -> None:
        tag = f"{binary.version()}-other"
        made = self._rig.cache / "images" / "another-build.tar"
        images.another_build(self._rig.place / "image.tar", made, f"docker.io/{image.NAME}:{tag}")
        for name in self._rig.names():
            self._nodes.import_image(name, made)
        before = self._programs()
        self._install.chart(tag)
        await_true("every worker and keeper runs the other build", lambda: not self._programs() & before, HANDED_OVER_S)

    @staticmethod
    def _programs() -> set[str]:
        """The copies that keepers and workers of all nodes run from (docs/KUBERNETES.md, "Mounts that outlive the pod")."""
        found = set()
        for place in Path("/proc").glob("[0-9]*"):
            try:
                path = (place / "exe").readlink()
            except OSError:
                continue  # of the kernel, or ended meanwhile
            if "awsomefsd/bin" in str(path.parent.parent):
                found.add(path.parent.name)
        return found

    def roll_back(self) -> None:
        before = self._programs()
        self._install.helm("rollback", NAME)
        self._install.await_ready()
        await_true("every worker and keeper runs the first build", lambda: not self._programs() & before, HANDED_OVER_S)

    def install_again(self) -> None:
        """All daemons are gone together for a while: no quorum, so writers wait; none may fail."""
        self._install.helm("uninstall", NAME, "--wait", "--timeout=5m")
        self._install.chart()

    # --- the account ----------------------------------------------------------------------------------------------------------
    def _live(self, event: str, strike: Callable[[], None]) -> None:
        errors, began, began_epoch = set(self._load.said().errors), time.monotonic(), time.time()
        try:
            strike()
            self._install.await_ready()
            back = time.monotonic() - began
            self._load.await_progress()
        except (BuildError, OSError, subprocess.SubprocessError, KeyError) as err:
            self.failures.append(f"{event}: {err}")
            bad(self.failures[-1])
            return
        time.sleep(SETTLE_S)  # a stall that is still going on shall belong to this one
        said = self._load.said()
        life = Life(event, back, said.longest_s(began_epoch, time.time()), sorted(set(said.errors) - errors))
        self.done.append(life)
        (bad if life.errors else good)(life.text())
        self.failures += life.errors

    def run(self) -> None:
        step("Lives under load")
        took = self._load.start()
        line(f"  a writer on each node, fio with verification on a file and on a block device: running after {took:.1f} s")
        for event, strike in (
            ("SIGKILL to the leader's daemon", self.kill_leader),
            ("SIGKILL to a follower's daemon", self.kill_follower),
            ("a follower's pod deleted", self.delete_pod),
            ("a follower's pod deleted by force", self.delete_pod_by_force),
            ("SIGKILL to a kubelet, and a new one", self.kill_kubelet),
            ("rolling update to another build", self.upgrade),
            ("rolled back", self.roll_back),
            ("uninstalled and installed again by helm", self.install_again),
        ):
            self._live(event, strike)
        self._check()
        self._attempt("a node crashed", self.crash)
        self._attempt("a node came later", self.come_later)
        self._attempt("all of it deleted", self._delete)

    def _attempt(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (BuildError, OSError, subprocess.SubprocessError, KeyError) as err:
            self.failures.append(f"{what}: {err}")
            bad(self.failures[-1])

    def _check(self) -> None:
        """Every record of every writer, read on another node."""
        said, names = self._load.said(), self._rig.names()
        for index, name in enumerate(names):
            reader = f"writer-{names[(index + 1) % len(names)]}"
            try:
                text = self._kubectl("exec", "-n", SPACE, reader, "--", "/writer", "--check", f"{DATA}/{name}")
                good(f"records of {name} read by {reader}: {text.strip()}")
            except BuildError as err:
                self.failures.append(f"records of {name}: {err}")
        rounds = f"{said.operations:,} rounds of create, write, fsync, rename, read back; {said.fio_rounds} rounds of fio --verify"
        line(f"  {rounds}; {len(said.errors)} errors")

    def crash(self) -> None:
        """A node goes without a word; its ReadWriteOnce pod is deleted by force, its claim used on another node; it comes back."""
        first, second = self._rig.names()[1:3]
        self._kubectl.apply(claim("moving"), pod("moving-1", f"exec /writer {DATA}/w", {DATA: "moving"}, node=first))
        self._kubectl.await_running(["moving-1"], 120, SPACE)
        self._load.await_progress()
        rows = [row for row in self._kubectl("logs", "-n", SPACE, "moving-1").splitlines() if row.startswith("acked ")]
        acked = int(rows[-1].split()[1]) if rows else 0
        errors, began, began_epoch = set(self._load.said().errors), time.monotonic(), time.time()
        self._nodes.crash(first)
        self._kubectl("delete", "pod", "-n", SPACE, "moving-1", "--force", "--grace-period=0")
        self._kubectl.apply(pod("moving-2", f"exec /writer {DATA}/other", {DATA: "moving"}, node=second))
        self._kubectl.await_running(["moving-2"], MOVED_S, SPACE)
        moved = time.monotonic() - began
        found = self._kubectl("exec", "-n", SPACE, "moving-2", "--", "/writer", "--check", f"{DATA}/w").split()
        if int(found[-1]) < acked:
            raise BuildError(f"the moved volume has records up to {found[-1]}, acknowledged were {acked}")
        said = self._load.said()
        new = sorted(row for row in set(said.errors) - errors if first not in row)
        life = Life(f"{first} crashed; its claim in a pod of {second}", moved, said.longest_s(began_epoch, time.time()), new)
        self.done.append(life)
        self.failures += new
        good(f"{life.text()}; records up to {found[-1]}, acknowledged {acked}")
        began, driver = time.monotonic(), self._install.driver_pods()[first]
        before = self._install.restarts(driver)
        self._nodes.boot(first)
        await_true(f"the driver of {first} is started again", lambda: self._install.restarts(driver) > before, MOVED_S)
        self._nodes.await_ready()
        self._install.await_ready()
        good(f"{first} is back: Ready, with its driver, {time.monotonic() - began:.0f} s after it was switched on")

    def come_later(self) -> None:
        """A machine that Kubernetes gets when the founding token has expired; then it goes for good, and the keeper of nodes removes it."""
        time.sleep(max(0.0, self._install.token_expires_s() + 1))
        began = time.monotonic()
        self._nodes.boot(LATER)
        for image_file in self._nodes.images():
            self._nodes.import_image(LATER, image_file)
        self._install.await_ready(count=NODES + 1)
        await_true(f"{LATER} is a node of the cluster", lambda: LATER in self._install.members(), MOVED_S)
        self._kubectl.apply(pod("later", f"exec /writer {DATA}/later", {DATA: "shared"}, node=LATER))
        self._kubectl.await_running(["later"], MOVED_S, SPACE)
        took = time.monotonic() - began
        good(f"{LATER} came after the founding token had expired: a pod on it writes {took:.0f} s after it was switched on")
        self._kubectl("delete", "pod", "-n", SPACE, "later")
        began = time.monotonic()
        self._nodes.crash(LATER)
        self._kubectl("delete", "node", LATER)
        await_true(f"{LATER} is no node of the cluster any more", lambda: LATER not in self._install.members(), REMOVED_S)
        self._install.await_ready()
        good(f"{LATER} went for good: removed from the cluster after {time.monotonic() - began:.0f} s (removeAfter {REMOVE_AFTER})")

    def _delete(self) -> None:
        self._load.end()
        took = await_true("no PersistentVolume is left", lambda: not self._kubectl.get("pv"), 300)
        left = [row for row in self._install.volumes() if row.startswith("csi-")]
        if left:
            raise BuildError(f"volumes that nobody has a claim for: {left}")
        good(f"everything deleted; the last PersistentVolume was gone {took:.1f} s after its claim, and no volume is left")
