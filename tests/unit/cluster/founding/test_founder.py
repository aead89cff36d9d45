"""A founder's authority and certificate, and a node that stands alone."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from awsomefsd.base import identity as node_module
from awsomefsd.cluster.founding.founder import certify_alone, enter_founder
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.config.settings import load
from awsomefsd.meta.api.messages.nodes import GetSigner, ListCas, ListNodes
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.state import keys, rows
from tests.rigs.machine_driver import Drive

CLUSTER = str(uuid.UUID(int=1))


def test_the_authority_of_a_founder_goes_into_the_state_and_leaves_the_disk(tmp_path: Path) -> None:
    settings = load(environ={"AWSOMEFSD_STATE_DIR": str(tmp_path), "AWSOMEFSD_CLUSTER_ADVERTISE": "10.0.0.1"})
    files = PkiFiles(tmp_path)
    node = node_module.init(tmp_path, prepare=lambda made: files.found(made.cluster, made.node))
    drive = Drive()
    enter_founder(settings, node, drive.ok)
    signer = drive.ask(GetSigner())
    assert "PRIVATE KEY" in signer.key and signer.bundle == files.read_bundle() and not files.authority_key.exists()
    [row] = drive.ask(ListNodes()).nodes
    assert (row.node, row.role, row.control, row.metadata) == (node.node, "node", "10.0.0.1:7440", "10.0.0.1:7441")
    assert row.key == ca.identity(files.read_certificate()).key
    enter_founder(settings, node, lambda command: pytest.fail("a second time"))


def test_a_node_alone_without_a_certificate_gets_one(tmp_path: Path) -> None:
    """Of a new authority if the state has none, else of that one: after a restore, or an older build."""
    drive = Drive()

    def ask(body: object) -> object:
        drive.machine.flush()
        return answer(drive.machine, body)  # type: ignore[arg-type]

    for number in (1, 2):
        environ = {"AWSOMEFSD_STATE_DIR": str(tmp_path / str(number)), "AWSOMEFSD_CLUSTER_ADVERTISE": "10.0.0.1"}
        node = node_module.init(tmp_path / str(number), cluster=CLUSTER)
        off = load(environ={**environ, "AWSOMEFSD_CLUSTER_LISTEN": ""})
        certify_alone(off, node, drive.ok, ask)
        files = PkiFiles(tmp_path / str(number))
        assert not files.there(), "it is to stand alone"
        for _ in range(2):
            certify_alone(load(environ=environ), node, drive.ok, ask)
        assert ca.identity(files.read_certificate()).node == node.node and not files.authority_key.exists()
        assert ca.issuer_of(ca.load(files.read_certificate()), ca.load_bundle(files.read_bundle())) == drive.ask(GetSigner()).id
    assert len(drive.ask(ListNodes()).nodes) == 2 and len(drive.ask(ListCas()).cas) == 1


def test_a_node_whose_state_has_lost_the_key_gets_a_new_authority_that_the_old_one_stands_beside(tmp_path: Path) -> None:
    """A store rebuilt from a checkpoint has no keys: the cluster signs again, and certificates of the old authority stay good."""
    drive = Drive()

    def ask(body: object) -> object:
        drive.machine.flush()
        return answer(drive.machine, body)  # type: ignore[arg-type]

    settings = load(environ={"AWSOMEFSD_STATE_DIR": str(tmp_path), "AWSOMEFSD_CLUSTER_ADVERTISE": "10.0.0.1"})
    files = PkiFiles(tmp_path)
    node = node_module.init(tmp_path, prepare=lambda made: files.found(made.cluster, made.node))
    enter_founder(settings, node, drive.ok)
    held = files.read_certificate()
    [old] = drive.ask(ListCas()).cas
    txn = drive.machine.state.txn
    for key, raw in list(txn.scan(*keys.kind_range(0, keys.CA))):
        row = rows.CA.loads(raw)
        row.key = ""
        txn.put(key, rows.CA.dumps(row))
    for _ in range(2):
        certify_alone(settings, node, drive.ok, ask)
    signer = drive.ask(GetSigner())
    assert {row.id: row.state for row in drive.ask(ListCas()).cas} == {old.id: "trusted", signer.id: "active"}
    assert "PRIVATE KEY" in signer.key and files.read_certificate() == held
    assert ca.issuer_of(ca.load(held), ca.load_bundle(signer.bundle)) == old.id
