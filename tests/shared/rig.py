"""Three nodes in network namespaces, one loop device that all of them see, and volumes on it, each mounted on all three.

A mode says with which options each node mounts.  All tests run in the main mode (AWSOMEFSD_TEST_SHARED names another); those that are
cheap, and cover all kinds of operations, run in every mode that this build knows.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.config import mount_options
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.rigs.network_namespaces import ANY_STATUS, found_on_one_disk

WAIT_S = 120.0
UNCACHED = "shared,cache=none"
MODES = {"cached": ("shared",) * 3, "uncached": (UNCACHED,) * 3, "mixed": ("shared", UNCACHED, "shared")}
# Not for all tests, which expect to see at once what others did.
BOUND_S = 2
LOOSE = {"loose": ("shared", "shared,consistency=close-to-open", f"shared,consistency=bounded={BOUND_S}")}
# On a volume with delegated names: each node decides names of what it holds, or the first one only.
LEASED = {"leased": ("shared,names=leases",) * 3, "leased-mixed": ("shared,names=leases", "shared", UNCACHED)}
MAIN = os.environ.get("AWSOMEFSD_TEST_SHARED") or "cached"
PINS = os.environ.get("AWSOMEFSD_TEST_SHARED_PINS") or ""  # what is switched off of this kernel (AWSOMEFSD_FUSE_PINS)
_MINOR = int(dict(pin.partition("=")[::2] for pin in PINS.split(",")).get("minor", "999"))
MAPPINGS = _MINOR >= 39  # MAP_SHARED of a file that is open for direct I/O, as those of shared mounts are
KEPT_NAMES = _MINOR >= 44  # names stay in the kernel of a shared mount: it can be told to ask again (INC_EPOCH)
needs_mappings = pytest.mark.skipif(not MAPPINGS, reason="before FUSE 7.39 a file of a shared mount has no MAP_SHARED")
needs_kept_names = pytest.mark.skipif(not KEPT_NAMES, reason="before FUSE 7.44 the kernel of a shared mount keeps no names")


def options(mode: str) -> tuple[str, ...]:
    return (MODES | LOOSE | LEASED)[mode]


def known(option: str) -> bool:
    try:
        mount_options.parse(option.split(","))
    except ConfigError:
        return False
    return True


def all_modes() -> list[str]:
    """The main one first."""
    others = [name for name, options in MODES.items() if name != MAIN and all(map(known, options))]
    return [MAIN, *others]


class SharedVolume:
    """A volume on three nodes."""

    def __init__(self, machines: Machines, mode: str) -> None:
        self.machines, self.mode = machines, mode
        self.roots = [node.directory / f"mnt-{mode}" for node in machines.nodes]
        self._made = 0

    def mount(self) -> None:
        names = "delegated" if self.mode in LEASED else "durable"
        self.machines.nodes[0].cli("volume", "create", self.mode, "--names", names)
        for number, root in enumerate(self.roots):
            root.mkdir()
            self.machines.nodes[number].cli("mount", self.mode, str(root), "-O", options(self.mode)[number])

    def umount(self) -> None:
        for node, root in zip(self.machines.nodes, self.roots, strict=True):
            node.cli("umount", str(root), timeout_s=WAIT_S)

    def places(self, name: str = "") -> list[Path]:
        """A new directory, as each node shows it."""
        self._made += 1
        made = f"{self._made}-{name}"[:200]
        (self.roots[0] / made).mkdir()
        return [root / made for root in self.roots]


class Machines:
    """The nodes, for all modes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.nodes = cluster, cluster.nodes
        self.mounted: dict[str, SharedVolume] = {}

    def found(self) -> None:
        found_on_one_disk(self.cluster)

    def shared_volume(self, mode: str) -> SharedVolume:
        if mode not in self.mounted:
            made = SharedVolume(self, mode)
            made.mount()
            self.mounted[mode] = made
        return self.mounted[mode]

    # --- faults -----------------------------------------------------------------------------------------------------------
    def kill(self, number: int) -> None:
        """The machine dies: all of the node's processes, and what its programs have open is dead."""
        assert self.nodes[number].kill_everything()

    def revive(self, number: int) -> None:
        """It comes up again, and its mounts with it."""
        for shared_volume in self.mounted.values():
            subprocess.run(["umount", "-i", "-l", str(shared_volume.roots[number])], capture_output=True, check=False)
        self.nodes[number].start()
        for mode, shared_volume in self.mounted.items():
            def again(m=mode, t=shared_volume) -> str:
                return self._mount_again(number, m, t)  # type: ignore[misc]
            await_true(f"the mount of {mode}", again, WAIT_S, 0.1)

    def _mount_again(self, number: int, mode: str, shared_volume: SharedVolume) -> bool:
        if not os.path.ismount(shared_volume.roots[number]):  # refused where the daemon is just doing it by itself
            self.nodes[number].cli("mount", mode, str(shared_volume.roots[number]), "-O", options(mode)[number], accept=ANY_STATUS)
        return os.path.ismount(shared_volume.roots[number])

    def leader(self) -> int:
        return self.nodes.index(self.cluster.await_leader())

    # --- the end ----------------------------------------------------------------------------------------------------------
    def end(self) -> list[str]:
        """All is unmounted and stopped; what fsck of each node says."""
        for shared_volume in self.mounted.values():
            shared_volume.umount()
        self.cluster.stop()
        return [node.cli("fsck", timeout_s=WAIT_S) for node in self.nodes]


