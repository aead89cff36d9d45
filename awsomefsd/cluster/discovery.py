"""The search for nodes on the local network: DNS-SD over multicast (zeroconf), service `_awsomefs._tcp`.  Optional; it only adds addresses.

It announces a hash of the cluster's id, the node's UUID, and the control port.  None of it is secret, and none is trusted: an address from
here is dialled like one from a token, and what answers has to prove itself.  Where multicast does not work (most clouds, many switches and
container networks), nothing is found, the reason is logged once, and the endpoints of the token are what there is.

zeroconf has a thread of its own; any thread may call `addresses`.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import logging
import threading
from typing import Any

logger = logging.getLogger(__name__)
SERVICE = "_awsomefs._tcp.local."
LOOK_MS = 2_000
FOUND_MAX = 256


def cluster_mark(cluster: str) -> str:
    """Returns a short hash that tells clusters apart without naming them."""
    return hashlib.sha256(b"awsomefs cluster " + cluster.encode()).hexdigest()[:16]


class Discovery:
    """The announcement of this node and the other nodes of its cluster, until `close`.

    The constructor may block for a second; it raises nothing.
    """

    def __init__(self, cluster: str, node: str, control: str) -> None:
        self._mark = cluster_mark(cluster)
        self._node = node
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, ...]] = {}
        self._zeroconf: Any = None
        try:
            self._start(control)
        except Exception as err:  # any error of the library or of this host's network: only a convenience is lost
            logger.warning(
                "multicast does not work here: %s; only the token's endpoints are used to find other nodes", err or type(err).__name__
            )
            self.close()

    def _start(self, control: str) -> None:
        import zeroconf

        host, _, port = control.rpartition(":")
        self._zeroconf = zeroconf.Zeroconf()
        properties = {"cluster": self._mark, "node": self._node, "port": port}
        try:
            addresses = [ipaddress.ip_address(host.strip("[]")).packed]
        except ValueError:
            addresses = []  # a name: those who find us resolve it
        server = f"{self._node}.local." if addresses else f"{host}."
        info = zeroconf.ServiceInfo(
            SERVICE, f"{self._node}.{SERVICE}", port=int(port), addresses=addresses, properties=properties, server=server
        )
        self._zeroconf.register_service(info, allow_name_change=False, cooperating_responders=True)
        zeroconf.ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._changed])

    def _changed(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if state_change.name == "Removed":
            with self._lock:
                self._found.pop(name, None)
            return
        info = zeroconf.get_service_info(service_type, name, LOOK_MS)
        if info is None or info.port is None:
            return
        properties = {key: value or b"" for key, value in info.properties.items()}
        if properties.get(b"cluster") != self._mark.encode() or properties.get(b"node") == self._node.encode():
            return
        hosts = info.parsed_scoped_addresses() or [str(info.server).rstrip(".")]
        with self._lock:
            if len(self._found) < FOUND_MAX:
                self._found[name] = tuple(f"[{host}]:{info.port}" if ":" in host else f"{host}:{info.port}" for host in hosts)

    def addresses(self) -> list[str]:
        """Returns the control addresses of the nodes that were found, "host:port".  Any thread; does not block."""
        with self._lock:
            return sorted({address for each in self._found.values() for address in each})

    def close(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            with contextlib.suppress(Exception):
                zeroconf.close()


async def announce(cluster: str, node: str, control: str) -> None:
    """Announces this node to nodes that start later, until cancelled.  The library's calls may block, so they run on a thread."""
    import trio

    discovery = await trio.to_thread.run_sync(Discovery, cluster, node, control)
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(discovery.close)
