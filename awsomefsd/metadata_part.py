"""What of the daemon is up first: identity, lock on the state directory, and the metadata service of this node, if it carries the metadata.

Everything that a mount waits for while its node's daemon is away is here, and this module imports nothing that it does not need for that: a
daemon that is started again answers its workers before trio, the control port, the admin API and the CSI driver are imported at all,
which take a good part of its start (docs/KUBERNETES.md, "Figures").  daemon.py builds the rest around a part that serves already.

Rejected: importing the rest on a thread beside the recovery.  Both would share the interpreter's lock: the mounts would wait longer.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from awsomefsd import levels, node
from awsomefsd.cluster.host import MetadataHost, begins
from awsomefsd.cluster.known_voters import cluster_voters, in_cluster
from awsomefsd.config import Settings, parse_endpoint, parse_voters
from awsomefsd.errors import ConfigError
from awsomefsd.io.devices import DeviceTable
from awsomefsd.meta import queries
from awsomefsd.meta.device_index import OFF, UNKNOWN, DeviceIndex
from awsomefsd.meta.machine import Machine
from awsomefsd.meta.peers import Voters
from awsomefsd.meta.service import MetadataService
from awsomefsd.tls import TlsFiles
from awsomefsd.watchdog import Watchdog


class MetadataPart:
    """Serves when constructed.  `close` ends it; harmless twice."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.node = node.load(settings.state_dir)
        with ExitStack() as undo:
            lock = node.StateLock(settings.state_dir, "a second daemon")
            undo.callback(lock.release)
            make_run_dir(settings)
            self.table = DeviceTable(settings.state_dir)
            self.on_device = DeviceIndex(OFF if settings.metadata.voters else UNKNOWN)
            self.metadata = MetadataHost(
                settings.state_dir / "meta", lambda: _metadata_service(settings, self.node, self.table, self.on_device)
            )
            undo.callback(self.metadata.stop)
            if not in_cluster(settings, self.node) or begins(settings.state_dir, self.node):
                self.metadata.start()
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()


def begin(settings: Settings) -> MetadataPart | None:
    """None: this node has no identity yet."""
    return MetadataPart(settings) if node.identity_path(settings.state_dir).exists() else None


def make_run_dir(settings: Settings) -> None:
    """Everybody may pass through (the admin socket is behind it), nobody else may list or write."""
    node.make_directory(settings.run_dir, 0o711)


def _metadata_service(settings: Settings, identity: node.Node, table: DeviceTable, on_device: DeviceIndex) -> MetadataService:
    directory = settings.state_dir / "meta"
    node.make_directory(directory, 0o700)
    if (settings.state_dir / "pki" / "node.pem").exists():
        from awsomefsd.cluster.self_renewal import renew_ended  # with it cryptography, which a node without certificates needs not

        renew_ended(settings, identity)
    return MetadataService(
        directory=directory,
        socket_path=settings.meta_socket,
        cluster_uuid=identity.cluster,
        node_uuid=identity.node,
        site=identity.site,
        make_machine=partial(Machine, level=levels.supported()),
        answer=queries.answer,  # type: ignore[arg-type]  # the machine it gets is the one that make_machine made
        device_paths=table.paths,
        voters=_voters(settings, identity),
        on_device=on_device,
        alive=Watchdog().feed,
    )


def _voters(settings: Settings, identity: node.Node) -> Voters | None:
    """The other nodes that carry the metadata, by configuration; None: this one alone."""
    chosen = settings.metadata
    if not chosen.voters:
        return cluster_voters(settings, identity) if in_cluster(settings, identity) and chosen.listen else None
    addresses = parse_voters(chosen.voters)
    if identity.node not in addresses:
        raise ConfigError(f"metadata.voters does not name this node, {identity.node}; correct it, or leave it out")
    if not (chosen.ca and chosen.certificate and chosen.key):
        raise ConfigError("metadata.ca, metadata.certificate and metadata.key are needed with metadata.voters")
    listen = parse_endpoint(chosen.listen) if chosen.listen and "listen" in chosen.model_fields_set else addresses[identity.node]
    tls = TlsFiles(chosen.ca, chosen.certificate, chosen.key)
    try:
        tls()
        return Voters(lambda: addresses, listen, tls, frozenset(addresses))
    except OSError as err:
        raise ConfigError(f"the certificates of metadata.ca, metadata.certificate and metadata.key cannot be used: {err}") from err
