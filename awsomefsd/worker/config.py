"""The configuration of one mount's worker: a versioned struct that the daemon writes and the worker reads.

It crosses three processes as a JSON object in the start message of the keeper, which stores it and hands it on unread.  The daemon, the
keeper and the worker may be of different builds: a running mount goes on with the configuration that it was mounted with, whatever its
daemon is by now, and its next worker may be of a newer build.  Hence the rules of this format (tests/golden/worker_config.json holds it):

- a key that is missing has the default given here, which is what a build without that key did; a key without a default was always there;
- a key that is not known is ignored;
- a key never changes its meaning.  A change that an older worker must not ignore raises VERSION, and that worker refuses to start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from awsomefsd.base.consistency import STRICT
from awsomefsd.base.errors import ConfigError
from awsomefsd.base.id_map import IdMap
from awsomefsd.base.limits import WORKER_MEMORY_BYTES
from awsomefsd.meta.api.commands import OpenSession, OpenShared, OpenSnapshot
from awsomefsd.meta.client.endpoints import Endpoints
from awsomefsd.vfs.ops.id_mapping import MappedIds

if TYPE_CHECKING:
    from awsomefsd.base.tls import TlsNow

VERSION = 3  # 2 only where `leased_names` is set, 3 where `snapshot` is: a worker that does not know it must not take such a mount over

IdRange = tuple[int, int, int]  # outside, inside, count


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Field names are the keys of the JSON object."""

    volume: int
    volume_name: str = ""
    mount: int = 0
    node: str
    boot_id: str
    meta_sock: str  # path of the metadata socket of this node's daemon
    state_dir: str
    cluster: str = ""  # UUID; devices of another one are refused
    tls: tuple[str, ...] = ()  # authorities, certificate, key: paths of PEM files; empty: this worker asks its own node only
    endpoints: str = ""  # path of the file with the addresses of the nodes that carry the metadata
    places: dict[str, str] = {}  # node → address of its metadata port, of a static configuration
    options: tuple[str, ...] = ()  # as somebody asked for them: a lost mounts.json is made again from them
    read_only: bool  # every build wrote it: a mount must not become writable because a key was lost
    shared: bool = False  # with mounts of the volume on other nodes
    on_lease_loss: str = "block"  # or "error"
    caches: bool = False  # of a shared mount: under leases
    snapshot: int = 0  # the number of the snapshot that is mounted, read-only; 0: the volume itself
    snapshot_uuid: str = ""
    leased_names: bool = False  # it decides names under leases, where the volume has delegated ones
    consistency: int = STRICT  # as base/consistency.py numbers it
    containers: bool = False  # other mount namespaces may mount on directories of this mount
    map_uid: tuple[IdRange, ...] = ()
    map_gid: tuple[IdRange, ...] = ()
    root_squash: bool = False
    check_all: bool = False  # the kernel checks no modes: mounted without default_permissions
    atime: tuple[str, bool] = ("relatime", True)  # policy of files; whether directories have access times too
    log_level: str = "info"
    log_format: str = "text"
    memory_bytes: int = WORKER_MEMORY_BYTES
    overrides: dict[str, Any] = msgspec.field(name="pins", default_factory=dict)  # FUSE features that a test holds back
    version: int = 1

    def to_wire(self) -> dict[str, Any]:
        """The JSON object as a dict of plain values, every key present."""
        wire: dict[str, Any] = msgspec.to_builtins(self)
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> WorkerConfig:
        """Reads the object of a start message.  Raises ConfigError for what is no object, a value of another type, and a later version."""
        if not isinstance(wire, Mapping):
            raise ConfigError("the configuration of this mount is not an object; unmount it and mount it again")
        version = wire.get("version", 1)
        if isinstance(version, int) and version > VERSION:
            raise ConfigError(
                f"the configuration of this mount has version {version}, but this program knows only {VERSION}; install the newer build"
            )
        try:
            return msgspec.convert(dict(wire), cls)
        except (msgspec.ValidationError, UnicodeError) as err:
            raise ConfigError(f"the configuration of this mount cannot be read: {err}; unmount it and mount it again") from err


def asked_options(wire: Any) -> tuple[str, ...] | None:
    """The mount options in a configuration of any build, as the keeper lists it; None: that build did not write them."""
    asked = wire.get("options") if isinstance(wire, dict) else None
    return None if asked is None else tuple(map(str, asked))


def endpoints_of(config: WorkerConfig) -> Endpoints:
    """Where this worker may ask the metadata service.  Without the certificates' paths it asks its own node only."""
    return Endpoints(
        config.meta_sock, node=config.node, file=config.endpoints, fixed=config.places, tls=tls_of(config) if config.tls else None
    )  # fmt: skip


def tls_of(config: WorkerConfig) -> Callable[[], TlsNow]:
    """Returns what makes the identity by which this worker speaks to other nodes, from the certificates' paths."""

    def tls() -> TlsNow:
        from awsomefsd.base.tls import TlsFiles  # with it ssl, which a worker beside its own daemon never needs

        return TlsFiles(*config.tls)

    return tls


def identity_of(config: WorkerConfig) -> MappedIds:
    """How ids of callers are mapped on this mount, and which of them the worker checks itself."""
    return MappedIds(IdMap(config.map_uid), IdMap(config.map_gid), config.root_squash, config.check_all)


def open_command(config: WorkerConfig, mount: int, worker: int, exited: bool) -> OpenSession:
    """The command by which worker number `worker` opens the session of its mount; `exited`: its predecessor is dead for certain."""
    where = (mount, config.volume, config.node, config.boot_id, worker, exited)
    if config.shared:
        return OpenShared(*where, shared=True, caches=config.caches)
    if config.snapshot:
        return OpenSnapshot(*where, snapshot=config.snapshot, uuid=config.snapshot_uuid)
    return OpenSession(*where)
