"""The certificate and authorities that a cluster issues to a node that joins: they are checked, and stored on the disk of that node.

Both ways into a cluster end here: `awsomefsd join` (cluster/control/join.py) and founding (cluster/founding/files.py).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

from awsomefsd.base import identity
from awsomefsd.base.errors import Refused
from awsomefsd.cluster import endpoints
from awsomefsd.cluster import messages as m
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.config.settings import Settings


def accept(
    settings: Settings,
    files: PkiFiles,
    cluster: str,
    uuid: str,
    role: str,
    joined: m.Joined,
    now: Callable[[], datetime.datetime] = ca.now,
) -> identity.Node:
    """Checks and stores what the cluster issued; returns the identity, which the caller writes to node.json.

    Raises Refused if it is not what was asked for, or not good by this clock; Corrupt, OSError.
    """
    certificate = ca.load(joined.certificate)
    said = ca.identity(certificate)
    if (said.node, said.role) != (uuid, role) or not ca.issuer_of(certificate, ca.load_bundle(joined.bundle)):
        raise Refused("the cluster issued a certificate that is not for this node; check the clocks and versions of its nodes")
    if not said.begins <= now() < said.ends:
        raise Refused(
            f"the certificate that the cluster issued is good from {said.begins:%Y-%m-%d %H:%M} to {said.ends:%Y-%m-%d %H:%M} UTC, and "
            f"this machine's clock says {now():%Y-%m-%d %H:%M}: set the clocks, then join with the same token "
            "(this does not count as another use)"
        )
    files.write_bundle(joined.bundle)
    files.write_certificate(joined.certificate)
    endpoints.write(settings.state_dir, cluster, joined.nodes)
    return identity.Node(cluster, uuid, joined.site, role=role, founder=False)
