"""The first start of a founder: its authority and its own row go into the state, then ca.key leaves the disk.

The steps come in this order, and each may come again after a crash: the entries are the same ones, and a cluster without its authority's
key in the state would never sign anything.

A node alone that has no certificate (its state was restored, recovered, loaded, or made by an older build) gets one in the same way, by the
authority in the state or, where there is none, by a new one.  If it has a certificate, and its store was rebuilt from a checkpoint, which
has no keys, then a new authority signs from now on and the old one stays trusted: a rotation (cluster/pki/rotation.py) does the rest.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awsomefsd import __version__
from awsomefsd.base import durable, failpoints, levels
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.identity import Node
from awsomefsd.cluster.addresses import described
from awsomefsd.config.settings import Settings, parse_labels
from awsomefsd.meta.api.commands import AddNode, PutCa, PutToken
from awsomefsd.meta.api.messages.nodes import GetSigner, ListCas, Signer

TOKEN_ROW = "founding-token.json"


def node_name(settings: Settings) -> str:
    return settings.cluster.name or socket.gethostname() or "node"


def enter_token(state_dir: Path, propose: Callable[[Any], Any]) -> None:
    """Enters the founding token for its other holders; before ca.key goes.  Does nothing unless this node was made by one (files.py).

    Blocks for the entry.  Raises Corrupt, and what `propose` raises.
    """
    path = state_dir / "pki" / TOKEN_ROW
    row = durable.read_json(path)
    if row is None:
        return
    try:
        command = PutToken(row["id"], "founding", "node", bytes.fromhex(row["verifier"]), row["expires_ms"], row["uses"])
    except (KeyError, TypeError, ValueError) as err:
        raise Corrupt(f"{path} is damaged; restore it from a backup") from err
    failpoints.hit("founding.token.before")
    if command.uses:
        propose(command)
    failpoints.hit("founding.token.after")
    path.unlink()
    durable.sync_directory(path.parent)


def enter_founder(settings: Settings, node: Node, propose: Callable[[Any], Any]) -> None:
    """Enters authority and row of a founder.  Does nothing unless this node has just been made the first one of its cluster.

    Blocks for the entries.  Raises Corrupt, and what `propose` raises; the next start does the rest.
    """
    from awsomefsd.cluster.pki.pki_files import PkiFiles

    enter_token(settings.state_dir, propose)
    if not (settings.state_dir / "pki" / "ca.key").exists():
        return  # also: no import of cryptography at every start
    from awsomefsd.cluster.pki import ca

    files = PkiFiles(settings.state_dir)
    authority = files.founded()
    assert authority is not None
    propose(PutCa(authority.id, authority.certificate, authority.key, "active"))
    _enter_node(settings, node, ca.identity(files.read_certificate()).key, propose)
    files.authority_stored()


def _enter_node(settings: Settings, node: Node, key: bytes, propose: Callable[[Any], Any]) -> None:
    control, metadata = described(settings)
    labels = parse_labels(settings.cluster.labels)
    propose(AddNode(node.node, node_name(settings), "node", key, "", control, metadata, labels, __version__, levels.supported()))


def certify_alone(settings: Settings, node: Node, propose: Callable[[Any], Any], ask: Callable[[Any], Any]) -> bool:
    """Certifies the only node that carries the metadata, and sees to it that the cluster can sign.

    Does nothing if both is so, or if the node is to stay without others.  Returns True if the cluster was there before the node:
    it was brought back from a device or a backup, and others will join it.

    Blocks for the entries.  Raises what `propose` and `ask` raise.
    """
    from awsomefsd.cluster.pki.pki_files import PkiFiles

    files = PkiFiles(settings.state_dir)
    if not settings.cluster.listen:
        return False
    signer = ask(GetSigner())
    known = isinstance(signer, Signer)
    if (files.there() and known) or (not known and getattr(signer, "errno", 0) != errno.ENOENT):
        return False  # nothing to do; or it is not known, and the next start asks again
    from awsomefsd.cluster.pki import ca

    if not isinstance(signer, Signer):
        if files.there():
            if not ask(ListCas()).cas:
                return False  # a certificate of another cluster, or of a configuration by hand
            made = ca.make_authority(node.cluster)
            propose(PutCa(made.id, made.certificate, made.key, "active"))
            return False
        there_before = bool(ask(ListCas()).cas)  # without its key: checkpoints have no secrets
        files.found(node.cluster, node.node)
        enter_founder(settings, node, propose)
        return there_before
    key = files.own_key()
    _enter_node(settings, node, ca.key_hash(key), propose)
    files.write_bundle(signer.bundle)
    authority = ca.Authority(signer.id, signer.certificate, signer.key)
    files.write_certificate(ca.sign(authority, ca.make_request(key, node.node), node.node, "node"))
    return True
