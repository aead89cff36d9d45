"""The renewal of an ended certificate by the node itself: one that carries the metadata and was off for long, before it meets other nodes.

Without this a cluster whose nodes were all off for a month would never start again: no node can be reached to sign, because none can
show a certificate that is good.  It gives no right that was not there: a node with the state has the authority's key, for any of them may
lead.  What the node may do is still decided by its row on the others; one that was removed meanwhile is refused, and an authority that was
exchanged meanwhile is not believed.  A node without metadata has no key, and joins again with a new token.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from pathlib import Path

from awsomefsd.base.errors import Error
from awsomefsd.base.identity import Node
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.config.settings import Settings
from awsomefsd.meta.api.messages.nodes import GetSigner, Signer
from awsomefsd.meta.machine import queries
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.store import DAMAGE, Store

logger = logging.getLogger(__name__)


def renew_ended(settings: Settings, identity: Node, now: Callable[[], datetime.datetime] = ca.now) -> bool:
    """Renews this node's certificate if it has ended and the store has the authority that signs; returns whether it did.

    Call it before the metadata service runs.  Raises no Error and no OSError: they are logged.
    """
    files = PkiFiles(settings.state_dir)
    store = settings.state_dir / "meta" / "store"
    if settings.metadata.voters or not files.there() or not (store / "data.mdb").exists():
        return False
    try:
        held = ca.identity(files.read_certificate())
        if held.ends > now():
            return False
        request = ca.make_request(files.own_key(), identity.node)
        signer = _signer(store)
        if signer is None or (held.node, held.key) != (identity.node, ca.request_key(request)):
            return False
        authority = ca.Authority(signer.id, signer.certificate, signer.key)
        made = ca.sign(authority, request, identity.node, held.role, now())
        if not ca.issuer_of(ca.load(made), ca.load_bundle(files.read_bundle())):
            files.write_bundle(signer.bundle)
        files.write_certificate(made)
    except (Error, OSError, *DAMAGE) as err:
        logger.warning("the node's certificate has expired, and this node cannot sign a new one itself: %s", err)
        return False
    logger.warning("the node's certificate had expired; this node signed a new one itself", extra={"ended": held.ends.isoformat()})
    return True


def _signer(directory: Path) -> Signer | None:
    store = Store.open(directory, readonly=True)
    try:
        answer = queries.answer(Machine(store), GetSigner())  # type: ignore[arg-type]
        return answer if isinstance(answer, Signer) else None
    finally:
        store.close()
