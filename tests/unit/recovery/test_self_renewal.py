"""A voter whose certificate has ended signs a new one with the authority in its own state."""

from __future__ import annotations

import datetime
from pathlib import Path

from awsomefsd.base import identity as node_module
from awsomefsd.cluster.founding.founder import enter_founder
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.config.settings import load
from awsomefsd.meta.replica.store import Store
from awsomefsd.recovery.self_renewal import renew_ended
from tests.rigs.machine_driver import Drive


def test_a_voter_that_was_off_for_long_signs_for_itself(tmp_path: Path) -> None:
    """Else a cluster whose nodes were all off for a month would be lost; a node that never carried metadata cannot."""
    settings = load(environ={"AWSOMEFSD_STATE_DIR": str(tmp_path), "AWSOMEFSD_CLUSTER_ADVERTISE": "10.0.0.1"})
    files = PkiFiles(tmp_path)
    node = node_module.init(tmp_path, prepare=lambda made: files.found(made.cluster, made.node))
    held, later = files.read_certificate(), ca.now() + datetime.timedelta(days=40)
    assert not renew_ended(settings, node, lambda: later), "there is no state"
    directory = tmp_path / "meta" / "store"
    directory.mkdir(parents=True)
    store = Store.open(directory)
    drive = Drive(txn=store)  # type: ignore[arg-type]
    enter_founder(settings, node, drive.ok)
    drive.machine.flush()
    store.commit()
    store.close()
    assert not renew_ended(settings, node) and files.read_certificate() == held
    assert renew_ended(settings, node, lambda: later)
    made = ca.identity(files.read_certificate())
    assert (made.node, made.role, made.key) == (node.node, "node", ca.identity(held).key) and made.ends > later
    assert ca.issuer_of(ca.load(files.read_certificate()), ca.load_bundle(files.read_bundle()))
    assert not renew_ended(settings, node, lambda: later)
    (directory / "data.mdb").write_bytes(b"damage" * 2_000)
    assert not renew_ended(settings, node, lambda: later + datetime.timedelta(days=40))
