"""Named health codes: each has a severity, its meaning, and what to do about it.  Pure.

`awsomefsd status` and `awsomefsd doctor` find them.  `awsomefsd status --codes` prints this one table, docs/TROUBLESHOOTING.md repeats it
(buildtools/health_codes.py makes it there, and a test compares).  A code keeps its name and its meaning: alerts are written against it.
"error": something does not work now.  "warning": all works, and an operator has to act before it stops working.  "info": as it should be,
or going on by itself; it makes no node degraded and no exit status 3.

The rules in rules.py decide which codes a given state has.  A finding names the thing, and may have a fix of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)


class Code(NamedTuple):
    """`doctor`: only `awsomefsd doctor` finds it, because it has to be measured, or because no daemon need run for it."""

    name: str
    severity: str
    says: str
    fix: str
    doctor: bool = False


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
        "this node knows no leader of the metadata; changes and lookups wait",
        "check that more than half of the voters run and reach each other (`awsomefsd status` on each)",
    ),
    Code(
        "NO_QUORUM",
        ERROR,
        "this voter is connected to too few others to elect a leader",
        "start the other voters' daemons, or repair the network to their metadata ports",
    ),
    Code(
        "LEADER_UNREACHABLE",
        ERROR,
        "the metadata has a leader, and this node cannot reach it",
        "check that this node reaches the leader's metadata port, and that its certificate is valid",
    ),
    Code(
        "NOT_FOUNDED",
        ERROR,
        "the metadata cluster of a static configuration is not founded yet; all voters must run at the same time once",
        "start the daemons of the voters that are missing",
    ),
    Code(
        "NO_MEMBER",
        WARNING,
        "this voter is not a member of a metadata cluster yet",
        "wait: it joins when a leader, or all other voters without a log, reach it; if it does not join, check metadata.voters",
    ),
    Code(
        "WAITING_FOR_CLUSTER",
        WARNING,
        "this machine is not in a cluster",
        "make a cluster with `awsomefsd init`, or join one with `awsomefsd join` or AWSOMEFSD_TOKEN",
    ),
    Code(
        "ONE_FAILURE_FROM_LOSS",
        WARNING,
        "the metadata stops if one more voter fails",
        "bring back the voters that are down; with fewer than three nodes, add nodes",
    ),
    Code(
        "VOTER_GONE",
        WARNING,
        "the leader receives nothing from a voter",
        "start its daemon; another node replaces it after cluster.voter_replace_after, if there is one",
    ),
    Code(
        "VOTER_LAGS",
        WARNING,
        "a voter is far behind the leader's log",
        "wait; if it does not catch up, check the load, disk and network of that node",
    ),
    Code(
        "NODE_GONE",
        WARNING,
        "a node does not report to the leader",
        "start its daemon, or repair its network; if it is gone for good: `awsomefsd node remove NODE`",
    ),
    Code("CLIENT_GONE", INFO, "a client does not report to the leader", "nothing; if it is gone for good: `awsomefsd node remove NODE`"),
    Code(
        "NODE_REMOVED",
        ERROR,
        "this node was removed from the cluster, and the other nodes refuse it",
        "stop its daemon; to add it again, empty its state directory and run `awsomefsd join` with a new token",
    ),
    Code("NODE_CORDONED", INFO, "a node takes no new work", "run `awsomefsd node uncordon NODE` to let it take new work"),
    Code(
        "NODE_DRAINING",
        INFO,
        "a node is being drained",
        "when it is empty: `awsomefsd node remove NODE`; to keep it: `awsomefsd node uncordon NODE`",
    ),
    Code(
        "CERTIFICATE_EXPIRES",
        WARNING,
        "this node's certificate expires soon or has expired; it should have been renewed long ago",
        "check that this node reaches the leader's control port, and that its clock is right; if the certificate has expired, restart the "
        "daemon; if that does not help, stop it and run `awsomefsd join` with a new token",
    ),
    Code("CA_EXPIRES", WARNING, "the cluster's certificate authority expires soon or has expired", "run `awsomefsd ca rotate`"),
    Code(
        "CLOCK_SKEW",
        WARNING,
        "the wall clock of a node differs from that of the leader; times of files and the life of certificates and tokens are wrong there",
        "set up NTP on that node, for example with `timedatectl set-ntp true`",
    ),
    Code("CONTROL_PORT_CLOSED", WARNING, "this node cannot open its control port", "free the address in cluster.listen, or choose another"),
    Code(
        "JOIN_TOKEN",
        WARNING,
        "a machine that comes later could not join: the token that is renewed for it is missing, or is not renewed",
        "read the log of the Deployment awsomefs-node-keeper (docs/KUBERNETES.md, Nodes that come later)",
    ),
    Code(
        "LEVEL_BEHIND",
        INFO,
        "some nodes run an older build; the cluster acts at the level of the oldest",
        "upgrade awsomefsd on those nodes",
    ),
    Code(
        "UPGRADE_READY",
        INFO,
        "all nodes know a higher level than the cluster acts at",
        "run `awsomefsd upgrade finalize` when no node will go back to the older build",
    ),
    # --- what this node stores of the metadata
    Code(
        "STORE_DIVERGED",
        WARNING,
        "a voter's state differed from that of the other voters and was rebuilt",
        "check the disk and memory of that voter",
    ),
    Code(
        "JOURNAL_FULL",
        ERROR,
        "the journal has no space; this voter sends nothing until it has some",
        "free space on the filesystem of state_dir",
    ),
    Code(
        "MAP_FULL",
        ERROR,
        "the map of the state store is nearly full and did not grow",
        "free space on the filesystem of state_dir, lift limits of address space (`ulimit -v`, LimitAS), then restart the daemon",
    ),
    Code(
        "CHECKPOINT_SUSPENDED",
        WARNING,
        "checkpoints on the device have stopped; the device could not restore everything if the state directory were lost",
        "bring the device back, or act on the reason given",
    ),
    Code(
        "CHECKPOINT_LATE",
        WARNING,
        "the copy of the metadata on the device is far behind",
        "check the device's health and load (`awsomefsd status -v`, dmesg)",
    ),
    # --- mounts, devices, data
    Code(
        "HOST_PROGRAM",
        WARNING,
        "the daemon in a pod could not start a keeper on the host, or could not bring keeper and workers to its version",
        "read the reason and the daemon's log; the daemon tries again every few seconds",
    ),
    Code(
        "KEEPER_GONE",
        ERROR,
        "the keeper does not answer; running mounts continue",
        "start it with `awsomefsd keeper`; one that lives and does not answer: end it with `kill -9`, another one takes the mounts up",
    ),
    Code(
        "MOUNT_DEAD", ERROR, "no process serves a mount", "wait: the mount is being brought back; if it stays so, read its reason and log"
    ),
    Code(
        "MOUNT_HUNG",
        ERROR,
        "the process that serves a mount lives, and does not answer",
        "run `kill -9 PID` for its worker: another one takes the mount over, and no open file ends",
    ),
    Code("MOUNT_REFUSED", ERROR, "a mount answers EIO: this node was removed from its cluster", "run `awsomefsd umount DIR`"),
    Code("MOUNT_WAITS", WARNING, "a mount is not served yet", "wait; if it stays so, read its reason and log"),
    Code("DEVICE_MISSING", ERROR, "this node does not find a device", "connect it, then run `awsomefsd device add PATH`"),
    Code(
        "DEVICE_ABSENT",
        ERROR,
        "no node sees a device; nothing new is written there, and files that lie nowhere else answer EIO",
        "connect it again, or start its node: it is used again without a command; `awsomefsd device show DEVICE` says what each node finds",
    ),
    Code(
        "DEVICE_ALONE",
        WARNING,
        "only one node sees a shared device; volumes on it cannot be mounted on other nodes",
        "connect it to the other nodes, then run `awsomefsd device scan` there; `awsomefsd device show DEVICE` lists the nodes that see it",
    ),
    Code(
        "DEVICE_WRONG",
        ERROR,
        "another device is at the path where this node knew one of the cluster; nothing is read from it or written to it",
        "connect the right device; this node finds it by itself under any name (`awsomefsd device scan` looks at once)",
    ),
    Code(
        "DEVICE_RECOVERED",
        ERROR,
        "the cluster was rebuilt from this device elsewhere, and this node's state is from before; it does not use the device",
        "stop this node, move its state directory away, and join the rebuilt cluster with a token (docs/DISASTER-RECOVERY.md)",
    ),
    Code(
        "SEGMENT_SERVER_GONE",
        ERROR,
        "this node's segment server does not answer, or other nodes cannot reach it: they do without this node's devices of pools",
        "read its log (`journalctl -u awsomefsd-segments`, or segments.log of `supervise`); start it, or free the port of segments.listen",
    ),
    Code(
        "DEVICE_LOST",
        WARNING,
        "a device of a pool was away for so long that it counts as lost: what it had is copied from its other mirrors",
        "bring it back, and its mirrors count again; if it is gone for good: `awsomefsd device drain DEVICE`, then "
        "`awsomefsd device remove DEVICE`",
    ),
    Code(
        "DEVICE_SLOW",
        WARNING,
        "a device of a pool takes much longer than disks do, and holds up who writes to it",
        "check its health and load (dmesg, SMART); replace it: `awsomefsd device drain DEVICE`",
    ),
    Code(
        "DEVICE_ROLLED_BACK",
        ERROR,
        "a device of a pool is an earlier state of itself, or lacks what it had confirmed; nothing of it is used",
        "find out who restored it, or whether its cache lies about flushes; then remove it (`awsomefsd device drain`, when it counts as "
        "lost `awsomefsd device remove`), clear it with `wipefs`, and add it again",
    ),
    Code(
        "POOL_LOST_DATA",
        ERROR,
        "no mirror is left of some segments of a pool; reading files there answers EIO",
        "bring the devices back that are lost or away: what they have counts again at once; else restore these files from a backup",
    ),
    Code(
        "POOL_BLOCKED",
        ERROR,
        "volumes of a pool cannot be written: fewer hosts take data than a write has to reach; writes wait",
        "bring back hosts that are away, or add devices on others (`awsomefsd pool status`)",
    ),
    Code(
        "POOL_AT_RISK",
        WARNING,
        "segments of a pool have one good mirror left: one more loss loses data",
        "bring back the devices that are away; the copies are made before all others, if there is room (`awsomefsd pool status`)",
    ),
    Code(
        "POOL_DEGRADED",
        WARNING,
        "segments of a pool have fewer mirrors than wanted",
        "wait while they are copied (`awsomefsd pool status --watch`); if nothing goes on, add a device, or bring back those that are away",
    ),
    Code(
        "WRITES_AT_RISK",
        WARNING,
        "volumes of a pool are written with fewer mirrors than wanted, because too few hosts take data",
        "bring back hosts that are away, or add devices on others",
    ),
    Code(
        "HEAL_STALLED",
        WARNING,
        "mirrors are missing in a pool, and none was made for ten minutes",
        "read the reason; add a device on another host, or bring back one that has the data",
    ),
    Code(
        "DRAIN_STALLED",
        WARNING,
        "data on a drained device of a pool cannot move to other devices, so the drain does not end",
        "read the reason; add a device on another host, bring back one that is away, or delete files; to end the drain: "
        "`awsomefsd device drain DEVICE --undo`",
    ),
    Code(
        "POOL_CANNOT_HEAL",
        WARNING,
        "if the fullest host of a pool is lost, the others have no room for what it has",
        "add devices, or delete files",
    ),
    Code("POOL_NEARLY_FULL", WARNING, "a pool is nearly full", "add devices, or delete files"),
    Code(
        "METADATA_ONE_COPY",
        WARNING,
        "files have mirrors on several hosts, and the metadata, their names, are on one node only",
        "add nodes: with three or more, three vote on the metadata",
    ),
    Code(
        "NODE_MAINTENANCE",
        INFO,
        "a node is under maintenance: its devices of a pool are not lost while it is away",
        "nothing, that ends by itself; at once with `awsomefsd node maintenance NODE --end`",
    ),
    Code("DEVICE_UNUSABLE", ERROR, "this node cannot use a device", "read its reason, and dmesg"),
    Code("DEVICE_FULL", WARNING, "a device is nearly full", "delete files or add a device"),
    Code(
        "QUARANTINE_GROWS",
        WARNING,
        "much space is in quarantine, because late writes of workers that are gone could still reach it",
        "bring back the nodes of these workers, which prove that their processes have ended; if one is gone for good: "
        "`awsomefsd quarantine ls`",
    ),
    Code(
        "SEGMENTS_QUARANTINED",
        INFO,
        "space is in quarantine until workers that are gone are proved to have ended",
        "wait until their node is back; if it is gone for good: `awsomefsd quarantine ls`",
    ),
    Code(
        "CORRUPT_EXTENTS",
        ERROR,
        "collection found extents with wrong bytes on a device",
        "restore the files that the daemon's log names, then check the device",
    ),
    Code(
        "DAMAGED_FILE",
        ERROR,
        "bytes of a file on the device are wrong; reading them answers EIO",
        "restore the file, or overwrite that part of it, then check the device; the code ends by itself when the bytes are right or gone",
    ),
    Code(
        "SCRUB_FINDINGS",
        ERROR,
        "scrub found damage that it could not repair",
        "run `awsomefsd scrub status` to see what is damaged; see Checking",
    ),
    Code("SCRUB_FAILED", WARNING, "scrub ended before it had checked everything", "read the reason, then run `awsomefsd scrub start`"),
    Code(
        "SCRUB_BEHIND",
        WARNING,
        "what a node stores has not been verified as a whole for twice the time of a round",
        "see `awsomefsd scrub status` there; run `awsomefsd scrub start`, or set scrub.every to what its devices can keep up with",
    ),
    Code(
        "CONFLICT_FILES",
        WARNING,
        "data that could not be committed was stored as a conflict",
        "compare it with the file, save what you need, then delete it",
    ),
    Code(
        "NAMES_DIVERGED",
        ERROR,
        "a mount with delegated names and the cluster saw different names, which is a defect; changes that were not applied are in the "
        "conflict area",
        "look which changes the file `records` in the newest *-names directory there lists, make again what is missing, report it with the "
        "worker's log, and mount the volume again",
    ),
    # --- this node's processes
    Code(
        "DAEMON_MEMORY",
        WARNING,
        "the daemon uses more than memory.daemon",
        "raise memory.daemon, or restart the daemon; report it if it keeps growing",
    ),
    Code("WORKER_MEMORY", WARNING, "a worker uses more than memory.worker, although it gave up its caches", "raise memory.worker"),
    # --- what `awsomefsd doctor` measures
    Code(
        "CONFIG_UNREADABLE",
        ERROR,
        "the configuration cannot be read",
        "correct what the evidence names, then run `awsomefsd config check`",
        True,
    ),
    Code(
        "DAEMON_GONE",
        ERROR,
        "the daemon of this node does not answer",
        "start it: `systemctl start awsomefsd`; one that is hung: `systemctl restart awsomefsd`",
        True,
    ),
    Code(
        "HOST_UNFIT",
        ERROR,
        "something that the program needs does not work on this host",
        "run `awsomefsd self-check`, and mend what it shows as bad",
        True,
    ),
    Code("KERNEL_OLD", ERROR, "the kernel is older than the program needs", "boot a newer kernel", True),
    Code(
        "FUSE_MISSING", ERROR, "this kernel has no FUSE, or an old one", "run `modprobe fuse`, or boot a kernel with CONFIG_FUSE_FS", True
    ),
    Code(
        "FILES_LIMIT",
        WARNING,
        "a process may open too few files",
        "raise the limit: LimitNOFILE= of the service, or `ulimit -n`",
        True,
    ),
    Code(
        "CLOCK_UNSYNCED",
        WARNING,
        "nothing sets the wall clock of this host",
        "set up NTP, for example with `timedatectl set-ntp true`",
        True,
    ),
    Code(
        "MEMORY_SHORT",
        WARNING,
        "the memory budgets of daemon and workers are larger than the memory that they can have",
        "lower memory.daemon and memory.worker, or give this host or its cgroup more memory",
        True,
    ),
    Code("MEMORY_BUDGET_SMALL", WARNING, "the memory budget of a worker is small, so its caches are too", "raise memory.worker", True),
    Code(
        "STATE_ON_NETWORK",
        ERROR,
        "the state directory is on a network filesystem, whose fsync and locks the journal cannot rely on",
        "set state_dir to a directory on a local disk",
        True,
    ),
    Code(
        "STATE_DISK_FULL",
        WARNING,
        "the filesystem of the state directory is nearly full; without space this node's voter stops",
        "free space there",
        True,
    ),
    Code(
        "SLOW_FSYNC",
        WARNING,
        "fsync on the filesystem of the state directory is slow, and every change waits for it on most voters",
        "put state_dir on a faster disk, or take other load from that disk",
        True,
    ),
    Code("PERMISSIONS", ERROR, "a file of this node has the wrong owner or mode", "correct owner and mode", True),
    Code(
        "PORT_IN_USE",
        ERROR,
        "an address that this node shall listen at is used by another process",
        "end that process, or choose another address",
        True,
    ),
    Code("ADDRESS_FOREIGN", ERROR, "an address that this node shall listen at is not of this host", "correct the address", True),
    Code(
        "NAME_UNRESOLVED",
        ERROR,
        "a host name in the configuration, or of another node, has no address",
        "correct the name or DNS (`getent hosts NAME`), or use an address",
        True,
    ),
    Code(
        "PEER_UNREACHABLE",
        ERROR,
        "a port of another node cannot be reached from here",
        "start its daemon, or repair the network or firewall between",
        True,
    ),
    Code(
        "MTU_WRONG",
        ERROR,
        "large packets to another node are lost, small ones arrive; connections hang when they carry much",
        "give all interfaces on the way the same MTU (`ip link set DEV mtu N`)",
        True,
    ),
    Code(
        "VERSION_SKEW",
        WARNING,
        "not all processes of the cluster run the same version",
        "install the newest version on every node (docs/OPERATIONS.md, Rolling upgrade; `awsomefsd upgrade status` lists the nodes); for a "
        "keeper and its workers: `awsomefsd keeper --upgrade`",
        True,
    ),
    Code(
        "WORKER_RESTARTS",
        WARNING,
        "the worker of a mount ended unexpectedly again and again",
        "read the end of its log, and report it with `awsomefsd doctor --bundle FILE`",
        True,
    ),
    Code("ORPHAN_MOUNT", WARNING, "no process serves a mount, and this node does not know it", "run `umount -l DIR`", True),
    Code(
        "MOUNT_PINNED",
        WARNING,
        "a mount was unmounted, and another mount namespace still has it",
        "end the processes or containers that have it",
        True,
    ),
)

CODES = {code.name: code for code in _TABLE}
assert len(CODES) == len(_TABLE), "a code has one meaning"


def degraded(found: Iterable[HealthFinding]) -> bool:
    """True if a finding needs an operator: its severity is warning or error."""
    return any(one.severity != INFO for one in found)
