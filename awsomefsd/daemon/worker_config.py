"""The daemon makes a worker's configuration out of this node's settings, its identity and the options of a mount."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from awsomefsd.base import identity
from awsomefsd.base.errors import ConfigError
from awsomefsd.config.mount_options import MountOptions
from awsomefsd.config.settings import Settings, parse_voters
from awsomefsd.meta.client.endpoints import ENDPOINTS_NAME
from awsomefsd.meta.net.peers import address_text
from awsomefsd.node.mounts import DesiredMount
from awsomefsd.worker.config import WorkerConfig

OVERRIDES_VARIABLE = "AWSOMEFSD_FUSE_PINS"


def certificates(settings: Settings) -> tuple[str, str, str]:
    """Returns the paths of this node's PEM files: (authorities, certificate, key)."""
    chosen, pki = settings.metadata, settings.state_dir / "pki"
    if chosen.voters:
        return str(chosen.ca), str(chosen.certificate), str(chosen.key)
    return str(pki / "ca.pem"), str(pki / "node.pem"), str(pki / "node.key")


def places(settings: Settings) -> dict[str, str]:
    """Returns node → address of its metadata port, by metadata.voters; empty without that setting."""
    return {node: address_text(address) for node, address in parse_voters(settings.metadata.voters).items()}


def worker_config(settings: Settings, node: identity.Node) -> Callable[[DesiredMount, MountOptions], WorkerConfig]:
    """Returns the function that makes the configuration of each mount.  Raises ConfigError if AWSOMEFSD_FUSE_PINS cannot be read."""
    overrides = overrides_of(os.environ.get(OVERRIDES_VARIABLE, ""))
    boot_id = identity.boot_id()

    def config(wanted: DesiredMount, options: MountOptions) -> WorkerConfig:
        return WorkerConfig(
            volume=wanted.volume,
            volume_name=wanted.volume_name,
            mount=wanted.mount,
            node=node.node,
            boot_id=boot_id,
            meta_sock=str(settings.meta_socket),
            state_dir=str(settings.state_dir),
            cluster=node.cluster,
            tls=certificates(settings),
            endpoints=str(settings.state_dir / ENDPOINTS_NAME),
            places=places(settings),
            options=wanted.options,
            read_only=options.read_only,
            shared=options.shared,
            on_lease_loss=options.on_lease_loss,
            caches=options.shared and options.caches,
            snapshot=wanted.snapshot,
            snapshot_uuid=wanted.snapshot_uuid,
            leased_names=options.leased_names,
            consistency=options.consistency,
            version=3 if wanted.snapshot else 2 if options.leased_names else 1,
            containers=settings.csi.enabled,
            map_uid=options.map_uid.ranges,
            map_gid=options.map_gid.ranges,
            root_squash=options.root_squash,
            check_all=not options.default_permissions,
            atime=options.atime_policy,
            log_level=settings.log.level,
            log_format=settings.log.format,
            memory_bytes=settings.memory.worker,
            overrides=overrides,
        )

    return config


def overrides_of(text: str) -> dict[str, Any]:
    """Returns the fields of negotiate.Overrides in AWSOMEFSD_FUSE_PINS ("minor=34,resend=off,without=0x40"), a variable of tests.

    Raises ConfigError for anything else.
    """
    overrides: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        name, _, value = word.partition("=")
        try:
            if name == "resend":
                overrides[name] = {"on": True, "off": False}[value]
            elif name in ("minor", "without"):
                overrides[name] = int(value, 0)
            else:
                raise KeyError(name)
        except (KeyError, ValueError):
            raise ConfigError(
                f"{OVERRIDES_VARIABLE}: {word!r} is not minor=NUMBER, resend=off or without=FLAGS; correct or unset it"
            ) from None
    return overrides
