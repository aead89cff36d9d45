"""The core of the daemon, which is up first: identity, lock on the state directory, and the metadata service where this node has one.

All that a mount waits for while its node's daemon is away is here, and this module imports nothing that it does not need for that: a
daemon that is started again answers its workers before it imports trio, the control port, the admin API and the CSI driver at all,
which take a good part of its start (docs/KUBERNETES.md, "Figures").  daemon.py builds the rest around a core that serves already.

Rejected: importing the rest on a thread beside the recovery.  Both would share the interpreter's lock: the mounts would wait longer.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from awsomefsd.base import identity, levels
from awsomefsd.base.errors import ConfigError
from awsomefsd.base.tls import TlsFiles
from awsomefsd.base.watchdog import Watchdog
from awsomefsd.cluster.membership.known_voters import cluster_voters, in_cluster
from awsomefsd.cluster.membership.metadata_host import MetadataHost, begins
from awsomefsd.config.settings import Settings, parse_endpoint, parse_voters
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.meta.machine import queries
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.net.peers import Voters
from awsomefsd.meta.replica.checkpoint_progress import UNKNOWN, CheckpointProgress
from awsomefsd.meta.replica.replica import ReplicaOptions
from awsomefsd.meta.server.service import MetadataService, Rules


class MetadataCore:
    """The core of a daemon; it serves when constructed.  `close` ends it and blocks until it has ended; a second call does nothing.

    The constructor blocks while the journal is replayed, and for OTHERS_END_S at most while another process holds the state directory; it
    raises Refused then.  Raises NotFound without an identity, and what the identity and the metadata service raise.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        with ExitStack() as undo:
            lock = identity.StateLock(settings.state_dir, "a second daemon", identity.OTHERS_END_S)
            undo.callback(lock.release)
            self.node = identity.load(settings.state_dir)  # under the lock: a node that leaves deletes it under the lock
            make_run_dir(settings)
            self.checkpoint_progress = CheckpointProgress(UNKNOWN)
            self.table = DeviceTable(settings.state_dir, self.checkpoint_progress.wake)
            self.metadata = MetadataHost(
                settings.state_dir / "meta", lambda: _metadata_service(settings, self.node, self.table, self.checkpoint_progress)
            )
            undo.callback(self.metadata.stop)
            if not in_cluster(settings, self.node) or begins(settings.state_dir, self.node):
                self.metadata.start()
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()


class _ServiceHost:
    """Implements turns.ServiceHost for a daemon: what devices it sees, and the service manager's watchdog."""

    def __init__(self, table: DeviceTable) -> None:
        self._table = table
        self._watchdog = Watchdog()

    def device_paths(self) -> dict[str, str]:
        return self._table.paths()

    def turned(self) -> None:
        self._watchdog.feed()


def begin(settings: Settings) -> MetadataCore | None:
    """Returns the core, serving; None if this node has no identity yet.  Raises as MetadataCore."""
    return MetadataCore(settings) if identity.identity_path(settings.state_dir).exists() else None


def make_run_dir(settings: Settings) -> None:
    """Makes the run directory: every user may pass through it (the admin socket is in it), only ours may list or write.  Raises Refused."""
    identity.make_directory(settings.run_dir, 0o711)


def _metadata_service(settings: Settings, node: identity.Node, table: DeviceTable, progress: CheckpointProgress) -> MetadataService:
    directory = settings.state_dir / "meta"
    identity.make_directory(directory, 0o700)
    if (settings.state_dir / "pki" / "node.pem").exists():
        from awsomefsd.recovery.self_renewal import renew_ended  # with it cryptography, which a node without certificates needs not

        renew_ended(settings, node)
    rules = Rules(
        partial(Machine, level=levels.supported()),
        queries.answer,  # type: ignore[arg-type]  # the machine it gets is the one that was made here
    )
    return MetadataService(
        node,
        directory,
        settings.meta_socket,
        rules,
        host=_ServiceHost(table),
        voters=_voters(settings, node),
        options=ReplicaOptions(checkpoint_progress=progress),
    )


def _voters(settings: Settings, node: identity.Node) -> Voters | None:
    """Returns the nodes that carry the metadata, by configuration or as the cluster knows them; None: this one alone."""
    chosen = settings.metadata
    if not chosen.voters:
        return cluster_voters(settings, node) if in_cluster(settings, node) and chosen.listen else None
    addresses = parse_voters(chosen.voters)
    if node.node not in addresses:
        raise ConfigError(f"metadata.voters does not name this node, {node.node}; correct it, or remove it")
    if not (chosen.ca and chosen.certificate and chosen.key):
        raise ConfigError("metadata.voters needs metadata.ca, metadata.certificate and metadata.key; set them")
    listen = parse_endpoint(chosen.listen) if chosen.listen and "listen" in chosen.model_fields_set else addresses[node.node]
    tls = TlsFiles(chosen.ca, chosen.certificate, chosen.key)
    try:
        tls()
        return Voters(lambda: addresses, listen, tls, frozenset(addresses))
    except OSError as err:
        raise ConfigError(f"the certificates in metadata.ca, metadata.certificate and metadata.key cannot be used: {err}") from err
