"""A network of its own: one network namespace for each machine, a bridge between them, and faults on every path.

The bridge lives in a namespace too (the hub), so no address, interface or rule of the host is touched, two networks may use the same
addresses, and deleting the namespaces deletes all.  Their names follow from the directory the network belongs to: whoever knows the
directory can remove it without any memory.  Processes enter with nsenter and keep the mount namespace of the caller: what they mount is
seen by everybody.  (`ip netns exec` would give them a mount namespace of their own.)

Faults are nftables rules in the namespace of the receiver, written as a whole each time, so what is in force is what was asked for last.
Every rule that drops counts: a test that cannot show that packets were dropped has shown nothing.  Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from buildtools.say import BuildError

NET = "10.77.0"
GATEWAY = f"{NET}.254"  # the hub: a machine has a default route, though nothing is behind it
TABLE = "inet awsomefs_faults"
NAMES = Path("/run/netns")
FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


def _which(name: str) -> str | None:
    return shutil.which(name, path=":".join([os.environ.get("PATH", ""), FOLDERS]))


def missing() -> str:
    """Why no network can be made here, "" if one can."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    absent = [name for name in ("ip", "nft", "nsenter", "unshare") if _which(name) is None]
    if absent:
        return f"needs {', '.join(absent)}: install the packages iproute2, nftables and util-linux"
    probe = ["nft", "add", "table", *TABLE.split()]
    done = subprocess.run([str(_which("unshare")), "--net", str(_which("nft")), *probe[1:]], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no network namespaces with nftables here: {done.stderr.strip()}"


def _run(*argv: str, stdin: str = "") -> str:
    words = [str(_which(argv[0]) or argv[0]), *argv[1:]]
    done = subprocess.run(words, capture_output=True, text=True, input=stdin, check=False, timeout=60)
    if done.returncode:
        raise BuildError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()} {stdin}")
    return done.stdout


class Network:
    """Machines 1 to `count`; `make` and `destroy` may be called again at any time."""

    def __init__(self, directory: Path, count: int) -> None:
        self._name = "awsomefs-" + hashlib.blake2b(os.fsencode(directory.resolve()), digest_size=4).hexdigest()
        self.count = count
        self._blocked: set[tuple[int, int]] = set()  # (from, to)
        self._loss: dict[int, float] = {}
        self._rate: dict[int, int] = {}
        self._mute: set[int] = set()  # machines that hear no multicast

    def namespace(self, machine: int) -> str:
        return f"{self._name}-{machine}"

    def address(self, machine: int) -> str:
        return f"{NET}.{machine}"

    def entering(self, machine: int) -> list[str]:
        """What stands before a command that shall run there."""
        return [str(_which("nsenter")), f"--net={NAMES / self.namespace(machine)}"]

    def hub(self) -> Path:
        """The file of the namespace of the bridge, which has GATEWAY and reaches all machines."""
        return NAMES / self._hub

    def entering_hub(self) -> list[str]:
        """As `entering`, for the namespace of the bridge, which has GATEWAY."""
        return [str(_which("nsenter")), f"--net={NAMES / self._hub}"]

    @property
    def _hub(self) -> str:
        return f"{self._name}-hub"

    def present(self) -> list[str]:
        """The namespaces of this network that exist."""
        return sorted(path.name for path in NAMES.glob(f"{self._name}-*"))

    def _names(self) -> set[str]:
        return {self._hub, *map(self.namespace, self._machines())}

    def complete(self) -> bool:
        return set(self.present()) == self._names()

    def make(self) -> None:
        if self.complete():
            return
        self.destroy()
        for name in sorted(self._names()):
            _run("ip", "netns", "add", name)
        rows = ["link add br0 type bridge mcast_snooping 0", f"addr add {GATEWAY}/24 dev br0", "link set br0 up"]
        for machine in self._machines():
            rows.append(f"link add m{machine} type veth peer name eth0 netns {self.namespace(machine)}")
            rows.append(f"link set m{machine} master br0 up")
        _run("ip", "-n", self._hub, "-batch", "-", stdin="\n".join(rows))
        for machine in self._machines():
            rows = [f"addr add {self.address(machine)}/24 dev eth0", "link set eth0 up", "link set lo up"]
            rows.append(f"route add default via {GATEWAY}")
            _run("ip", "-n", self.namespace(machine), "-batch", "-", stdin="\n".join(rows))

    def destroy(self) -> None:
        """The namespaces by name; what still runs in one keeps it alive without a name, so processes end first."""
        for name in self.present():
            _run("ip", "netns", "delete", name)

    def _machines(self) -> range:
        return range(1, self.count + 1)

    # --- faults -----------------------------------------------------------------------------------------------------------
    def cut(self, sources: Iterable[int], targets: Iterable[int], *, one_way: bool = False) -> None:
        """Nothing gets from `sources` to `targets`, and unless `one_way` nothing back; in addition to what is cut already."""
        pairs = {(source, target) for source in sources for target in targets if source != target}
        self._blocked |= pairs if one_way else pairs | {(target, source) for source, target in pairs}
        self._apply()

    def isolate(self, machine: int, *, hears: bool = False, speaks: bool = False) -> None:
        """Cut one off from all others; it may still hear them, or be heard."""
        others = [other for other in self._machines() if other != machine]
        if not speaks:
            self._blocked |= {(machine, other) for other in others}
        if not hears:
            self._blocked |= {(other, machine) for other in others}
        self._apply()

    def lose(self, machine: int, fraction: float) -> None:
        """This share of what arrives at a machine is lost, by chance."""
        self._loss[machine] = fraction
        self._apply()

    def slow(self, machine: int, bytes_per_second: int) -> None:
        """What arrives at a machine above this rate is lost (0: no bound); TCP slows down to it."""
        self._rate[machine] = bytes_per_second
        self._apply()

    def mute_multicast(self, machines: Iterable[int]) -> None:
        """These hear no multicast and no broadcast but ARP."""
        self._mute = set(machines)
        self._apply()

    def heal(self) -> None:
        """No fault on any path."""
        self._blocked.clear()
        self._loss.clear()
        self._rate.clear()
        self._mute.clear()
        self._apply()

    def _rules(self, machine: int) -> list[str]:
        rules = [f"ip saddr {self.address(source)} counter drop" for source, target in sorted(self._blocked) if target == machine]
        if machine in self._mute:
            rules.append('iifname "eth0" meta pkttype { multicast, broadcast } counter drop')
        if share := round(self._loss.get(machine, 0) * 1000):
            rules.append(f'iifname "eth0" numgen random mod 1000 < {share} counter drop')
        if rate := self._rate.get(machine, 0):
            rules.append(f'iifname "eth0" limit rate over {rate} bytes/second burst {max(rate // 4, 10_000)} bytes counter drop')
        return rules

    def _apply(self) -> None:
        for machine in self._machines():
            rows = [f"table {TABLE} {{}}", f"delete table {TABLE}"]
            rules = self._rules(machine)
            if rules:
                body = ["type filter hook input priority 0", *rules]
                rows += [f"table {TABLE} {{", "chain arrives {", *(f"{rule};" for rule in body), "}", "}"]
            _run(*self.entering(machine), str(_which("nft")), "-f", "-", stdin="\n".join(rows) + "\n")

    def carried(self, machine: int) -> int:
        """Bytes that its interface has received and sent so far, as its kernel counts them."""
        rows = _run(*self.entering(machine), "cat", "/proc/self/net/dev").splitlines()
        words = next(row for row in rows if row.strip().startswith("eth0:")).partition(":")[2].split()
        return int(words[0]) + int(words[8])

    def dropped(self, machine: int) -> int:
        """Packets that the rules in force have dropped there."""
        listing = json.loads(_run(*self.entering(machine), str(_which("nft")), "-j", "list", "ruleset"))
        rules = [row["rule"]["expr"] for row in listing["nftables"] if "rule" in row]
        return sum(word["counter"]["packets"] for rule in rules for word in rule if "counter" in word)
