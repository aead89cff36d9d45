"""The counters of the leader's requests and of the bytes to and from each node: figures for metrics, counted where they pass by.

A tally belongs to a node and a way (client: requests of mounts and daemons, voter: the log's copies), not to a connection, so it outlives
connections.  Frames are counted as they are before TLS; the interfaces carry about 5 % more, and acknowledgements.  Names of figures are
words separated by colons, which admin/status.py turns into labels.  Bounded: there are as many kinds as commands, as many nodes as members.
"""

from __future__ import annotations

from collections import defaultdict

from awsomefsd.meta.api.messages import Body, Propose

CLIENT, VOTER = "client", "voter"
LOCAL = "local"  # instead of a node: over the unix socket, nothing of it on an interface
REQUESTS, BYTES = "requests", "bytes"


class Tally:
    """Bytes received from and sent to one node."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.received = self.sent = 0


class Traffic:
    """The bytes of one way, by node."""

    def __init__(self, way: str) -> None:
        self._way = way
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)

    def of(self, node: str) -> Tally:
        """Returns the tally of a node, for its connections to count in."""
        return self._tallies[node]

    def figures(self) -> dict[str, int]:
        """Returns "bytes:WAY:NODE:received" and "…:sent" → bytes."""
        found: dict[str, int] = {}
        for node, tally in self._tallies.items():
            found[f"{BYTES}:{self._way}:{node}:received"] = tally.received
            found[f"{BYTES}:{self._way}:{node}:sent"] = tally.sent
        return found


class Asked:
    """The requests that this node took as the leader, by kind; a proposal counts as its command."""

    def __init__(self) -> None:
        self._counts: defaultdict[type, int] = defaultdict(int)

    def count(self, body: Body) -> None:
        self._counts[type(body.command) if isinstance(body, Propose) else type(body)] += 1

    def figures(self) -> dict[str, int]:
        """Returns "requests:KIND" → count."""
        return {f"{REQUESTS}:{kind.__name__}": count for kind, count in self._counts.items()}
