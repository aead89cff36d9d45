"""Commands that open and end sessions."""

from __future__ import annotations

from awsomefsd.meta.api.commands.base import Command


class OpenSession(Command, tag=10):
    """A worker starts to serve a mount.

    If a live session of this mount exists, the worker takes it over (same id and epoch); segments leased to its predecessor are sealed at
    their committed length, quarantined unless `predecessor_exited` is proven.  Otherwise a new session with a new epoch, which holds
    the volume: EBUSY while another live session holds it.

    `unanswered` names the kernel requests that the worker may send again: results of all others of this mount go.  None says nothing.
    """

    mount: int
    volume: int
    node: str
    boot_id: str
    worker: int  # counts the workers of this mount
    predecessor_exited: bool = True
    shared: bool = False  # beside other sessions of the volume that share it; then files are held by leases
    unanswered: list[int] | None = None


class OpenShared(OpenSession, tag=136):
    """OpenSession of a mount that shares its volume and does not say what it has open.

    ENXIO unless the volume's data is on shared devices.  What loses its last name stays for such sessions until each has said that it does
    not have it open (GetOrphans, ReleaseOrphan).  Without `caches` it takes no leases, asks for everything, and writes through.
    """

    since = 2

    caches: bool = False  # under leases


class EndSession(Command, tag=11):
    """Ends locks, pins, reservation and leases.  `clean`: its segments are sealed; otherwise sealed and quarantined.  `expired`: nobody has
    renewed it, says the leader."""

    session: int
    epoch: int
    clean: bool
    expired: bool = False
