"""Named health codes: each has a severity, its meaning, and what to do about it.  Pure.

`awsomefsd status --codes` prints this one table, and docs/TROUBLESHOOTING.md repeats it (buildtools/health_codes.py makes it there, and a
test compares).  A code keeps its name and its meaning: alerts are written against it.  "error": something does not work now.  "warning":
all works, and an operator has to act before it stops working.  "info": as it should be, or going on by itself; it makes no node degraded
and no exit status 3.

The rules in rules.py decide which codes a given state has.  A finding names the thing, and may have a fix of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)


class Code(NamedTuple):
    name: str
    severity: str
    says: str
    fix: str


class HealthFinding(NamedTuple):
    """A code that applies now.  `what`: the thing and its condition.  `fix`: what to do, "" for that of the code."""

    code: str
    what: str
    fix: str = ""

    @property
    def severity(self) -> str:
        return CODES[self.code].severity

    def remedy(self) -> str:
        return self.fix or CODES[self.code].fix

    def words(self) -> str:
        """The finding as one line."""
        return f"{self.what}; {self.remedy()}"


_TABLE = (
    # --- the cluster
    Code(
        "NO_LEADER",
        ERROR,
        "no node is known to lead the metadata: changes and lookups wait",
        "see that more than half of the voters run and are connected (`awsomefsd status` on each)",
    ),
    Code(
        "NO_QUORUM",
        ERROR,
        "this voter is connected to too few others for anybody to lead",
        "start the other voters' daemons, or repair the network to their metadata ports",
    ),
    Code(
        "LEADER_UNREACHABLE",
        ERROR,
        "a node leads, and this one cannot ask it",
        "see that this node reaches the metadata port of the leader, and that its certificate is valid",
    ),
    Code(
        "NOT_FOUNDED",
        ERROR,
        "the metadata cluster of a static configuration is not founded yet: all voters must be up once",
        "start the daemons of the voters that were not heard of",
    ),
    Code(
        "NO_MEMBER",
        WARNING,
        "this voter is in no metadata cluster yet",
        "wait: it joins when a leader, or all other voters without a log, hear of it; else look at metadata.voters",
    ),
    Code(
        "WAITING_FOR_CLUSTER",
        WARNING,
        "this machine is in no cluster",
        "`awsomefsd init` makes one, `awsomefsd join` joins one, so does AWSOMEFSD_TOKEN",
    ),
    Code(
        "ONE_FAILURE_FROM_LOSS",
        WARNING,
        "the metadata stops when one more voter fails",
        "bring back the voters that are gone; with fewer than three nodes, join more",
    ),
    Code(
        "VOTER_GONE",
        WARNING,
        "the leader does not hear a voter",
        "start its daemon; where a node is left to replace it, that is done after cluster.voter_replace_after",
    ),
    Code(
        "VOTER_LAGS",
        WARNING,
        "a voter is far behind the leader's log",
        "wait; if it stays so, look at the load, disk and network of that node",
    ),
    Code(
        "NODE_GONE",
        WARNING,
        "a node does not report to the leader",
        "start its daemon, or repair its network; if it is gone for good: `awsomefsd node remove NODE`",
    ),
    Code("CLIENT_GONE", INFO, "a client does not report to the leader", "nothing, or if it is gone for good: `awsomefsd node remove NODE`"),
    Code(
        "NODE_REMOVED",
        ERROR,
        "this node was removed from the cluster and is refused everywhere",
        "stop it; to take it back, empty its state directory and `awsomefsd join` with a new token",
    ),
    Code("NODE_CORDONED", INFO, "a node takes nothing new", "`awsomefsd node uncordon NODE` to let it take new work"),
    Code(
        "NODE_DRAINING", INFO, "a node is being drained", "`awsomefsd node remove NODE` when it is empty, or `awsomefsd node uncordon NODE`"
    ),
    Code(
        "CERTIFICATE_EXPIRES",
        WARNING,
        "this node's certificate ends soon, or has ended: it should have been renewed long before",
        "see that this node reaches the leader's control port, and that its clock is right; once it has ended, restart the daemon, or "
        "where that does not help stop it and `awsomefsd join` with a new token",
    ),
    Code("CA_EXPIRES", WARNING, "the cluster's certificate authority ends soon, or has ended", "`awsomefsd ca rotate`"),
    Code("CONTROL_PORT_CLOSED", WARNING, "this node cannot open its control port", "free the address of cluster.listen, or choose another"),
    Code(
        "LEVEL_BEHIND",
        INFO,
        "nodes run an older build than others: the cluster acts as the oldest does",
        "upgrade awsomefsd on those nodes",
    ),
    Code(
        "UPGRADE_READY",
        INFO,
        "all nodes know a higher level than the cluster acts at",
        "`awsomefsd upgrade finalize`, when no node shall go back to the older build",
    ),
    # --- what this node stores of the metadata
    Code("STORE_DIVERGED", WARNING, "a voter's state differed from the others' and was rebuilt", "check its disk and memory"),
    Code(
        "JOURNAL_FULL",
        ERROR,
        "the journal has no room; this voter is silent until there is some",
        "make room on the filesystem of state_dir",
    ),
    Code(
        "CHECKPOINT_SUSPENDED",
        WARNING,
        "checkpoints on the device have stopped: it could not bring all back if the state directory were lost",
        "bring back the device, or see what the reason says",
    ),
    Code(
        "CHECKPOINT_LATE",
        WARNING,
        "the copy of the metadata on the device is far behind",
        "look at the device's health and load (`status -v`, dmesg)",
    ),
    # --- mounts, devices, data
    Code(
        "HOST_PROGRAM",
        WARNING,
        "the daemon in a pod could not start a keeper on the host, or bring keeper and workers to its version",
        "see the reason, and the daemon's log; it tries again every few seconds",
    ),
    Code("KEEPER_GONE", ERROR, "the keeper does not answer; running mounts go on", "start it with `awsomefsd keeper`"),
    Code(
        "MOUNT_DEAD", ERROR, "a mount has no process that serves it", "it is being brought back; if it stays so, look at its reason and log"
    ),
    Code("MOUNT_REFUSED", ERROR, "a mount answers EIO, because this node was removed from the cluster", "`awsomefsd umount DIR`"),
    Code("MOUNT_WAITS", WARNING, "a mount is not served yet", "wait; if it stays so, look at its reason and log"),
    Code("DEVICE_MISSING", ERROR, "this node does not find a device", "connect it, then `awsomefsd device add PATH`"),
    Code(
        "DEVICE_ALONE",
        WARNING,
        "a shared device is seen by one node only: volumes on it cannot be mounted elsewhere",
        "connect it to the other nodes, then `awsomefsd device scan` there; `awsomefsd device show` says who sees it",
    ),
    Code("DEVICE_UNUSABLE", ERROR, "this node cannot use a device", "see its reason, and dmesg"),
    Code("DEVICE_FULL", WARNING, "a device is nearly full", "delete files or add a device"),
    Code(
        "QUARANTINE_GROWS",
        WARNING,
        "much space is held because late writes of workers that are gone could still land there",
        "bring those nodes back: they prove that their processes have ended; if one is gone for good: `awsomefsd quarantine ls`",
    ),
    Code(
        "SEGMENTS_QUARANTINED",
        INFO,
        "space is held until it is proved that workers that are gone have ended",
        "wait until that node is back; if it is gone for good: `awsomefsd quarantine ls`",
    ),
    Code(
        "CORRUPT_EXTENTS",
        ERROR,
        "collection has found extents with wrong bytes on a device",
        "the daemon's log names the files; restore them, then look at the device",
    ),
    Code("SCRUB_FINDINGS", ERROR, "scrub has found what it could not repair", "`awsomefsd scrub status` names it; see Checking"),
    Code("SCRUB_FAILED", WARNING, "scrub did not come to its end", "see the reason, then `awsomefsd scrub start`"),
    Code("CONFLICT_FILES", WARNING, "data that could not be committed was kept aside", "look at it, then delete it"),
    # --- this node's processes
    Code("DAEMON_MEMORY", WARNING, "the daemon uses more than memory.daemon", "give it more, or restart it; report it if it grows on"),
    Code("WORKER_MEMORY", WARNING, "a worker uses more than memory.worker, its caches given up", "give it more"),
)

CODES = {code.name: code for code in _TABLE}
assert len(CODES) == len(_TABLE), "a code has one meaning"


def degraded(found: Iterable[HealthFinding]) -> bool:
    """True if a finding needs an operator: its severity is warning or error."""
    return any(one.severity != INFO for one in found)
