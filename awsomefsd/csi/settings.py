"""The driver's name, and its settings from the configuration, without pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DRIVER = "csi.awsomefs.io"
TOPOLOGY = "topology.awsomefs.io/"
SOCKET_NAME = "csi.sock"
REGISTRATION_SOCKET_NAME = f"{DRIVER}-reg.sock"


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """The settings of the driver.  `health_api`: which of the two incompatible ways to report health is advertised."""

    node: str
    cluster: str
    boot_id: str
    socket: Path
    kubelet_dir: Path
    registration_dir: Path | None
    health_api: str = "1.12"
    attach: bool = False
    zone: str = ""
    rack: str = ""
    max_volumes: int = 0
    inline: bool = False
    inline_max: int = 0  # bytes
    voters: frozenset[str] = frozenset()  # nodes by configuration, which have no rows in the metadata

    @property
    def topology(self) -> dict[str, str]:
        """The topology of this node: its cluster, and its zone and rack if they are set."""
        words = {"cluster": self.cluster, "zone": self.zone, "rack": self.rack}
        return {TOPOLOGY + name: value for name, value in words.items() if value}

    @property
    def reachable(self) -> dict[str, str]:
        """The topology of every volume: all nodes of its cluster reach it, and no others."""
        return {TOPOLOGY + "cluster": self.cluster}

    @property
    def volumes_dir(self) -> Path:
        return self.kubelet_dir / "plugins" / DRIVER / "volumes"
