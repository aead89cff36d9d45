"""Certificates of 30 days over more than a year: a node has a valid one at every moment, and the next one is used when it is there."""

from __future__ import annotations

import datetime
import random
import ssl
from pathlib import Path

from awsomefsd.base.errors import Unavailable
from awsomefsd.cluster import messages as m
from awsomefsd.cluster.control.join import join
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.cluster.pki.renewal import Renewal
from awsomefsd.cluster.pki.signing import Signing
from awsomefsd.meta.api.messages.nodes import GetSigner
from tests.unit.cluster.control.test_server import Cluster, cluster, member_call, settings_of, text

__all__ = ["cluster"]
YEARS = datetime.timedelta(days=500)
HOUR = datetime.timedelta(hours=1)
AWAY_MAX = ca.NODE_LIFE / 5  # shorter than the third of the life that is left when a renewal begins, less its spread
BACK = datetime.timedelta(days=1)  # at least, between two of its absences


def test_no_node_is_ever_without_a_valid_one(cluster: Cluster, tmp_path: Path, seed: int) -> None:
    """The leader is away at any time, for days."""
    join(settings_of(tmp_path / "n2"), text(cluster.token()))
    dice, begun = random.Random(seed), ca.now()
    clock = [begun]
    signing = Signing(cluster.node.cluster, 7, cluster.ask, lambda: clock[0])
    away_until = begun

    def ask(body: m.RenewCertificate) -> m.Renewed:
        if clock[0] < away_until:
            raise Unavailable("no node leads")
        return signing.renew(renewal.identity().node, body)

    files = PkiFiles(tmp_path / "n2")
    renewal = Renewal(files, ask, lambda: clock[0])
    while clock[0] < begun + YEARS:
        clock[0] += dice.random() * 8 * HOUR
        if dice.random() < 0.05 and clock[0] > away_until + BACK:
            away_until = clock[0] + dice.random() * AWAY_MAX
        renewal.renew_if_due(cluster.pin)
        held = renewal.identity()
        assert held.begins <= clock[0] < held.ends, (renewal.renewed, renewal.failed)
    assert YEARS / ca.NODE_LIFE < renewal.renewed < 2 * YEARS / ca.NODE_LIFE


def test_one_that_is_old_renews_over_tls_and_the_next_one_is_shown(cluster: Cluster, tmp_path: Path) -> None:
    """25 of its 30 days are over; of the founder's, which its server shows, too."""
    join(settings_of(tmp_path / "n2"), text(cluster.token()))
    authority = ca.Authority(cluster.pin, cluster.files.read_bundle(), cluster.ask(GetSigner()).key)
    old = ca.now() - datetime.timedelta(days=25)
    for files in (PkiFiles(tmp_path / "n2"), cluster.files):
        held = ca.identity(files.read_certificate())
        files.write_certificate(ca.sign(authority, ca.make_request(files.own_key(), held.node), held.node, held.role, old))
        renewal = Renewal(files, lambda body, files=files: member_call(cluster, files, body))  # type: ignore[misc]
        assert renewal.due() < ca.now() < renewal.identity().ends
        renewal.renew_if_due(cluster.pin)
        assert renewal.renewed == 1 and renewal.due() > ca.now()
    shown = ssl.get_server_certificate(("127.0.0.1", cluster.port))
    assert ca.load(shown) == ca.load(cluster.files.read_certificate())


def test_the_files_are_read_when_they_have_changed_or_it_is_time(cluster: Cluster, tmp_path: Path) -> None:
    """In between a node that is idle does not look."""
    join(settings_of(tmp_path / "n2"), text(cluster.token()))
    clock, files = [ca.now()], PkiFiles(tmp_path / "n2")
    trouble: list[Exception] = []

    def ask(body: m.RenewCertificate) -> m.Renewed:
        if trouble:
            raise trouble[0]
        return Signing(cluster.node.cluster, 7, cluster.ask, lambda: clock[0]).renew(renewal.identity().node, body)

    renewal = Renewal(files, ask, lambda: clock[0])
    assert renewal.may_be_due(), "it was never looked at"
    renewal.renew_if_due(cluster.pin)
    assert not renewal.may_be_due()
    files.write_bundle(files.read_bundle())
    assert renewal.may_be_due(), "another file, whatever it says"
    renewal.renew_if_due(cluster.pin)
    assert not renewal.may_be_due() and not renewal.renewed
    clock[0] = renewal.due()
    trouble.append(Unavailable("no node leads"))
    assert renewal.may_be_due()
    renewal.renew_if_due(cluster.pin)
    assert renewal.failed == 1 and not renewal.may_be_due(), "it is tried again after a pause"
    clock[0] += HOUR
    trouble.clear()
    assert renewal.may_be_due()
    renewal.renew_if_due(cluster.pin)
    assert renewal.renewed == 1 and renewal.may_be_due(), "what is there now was not looked at"
    renewal.renew_if_due(cluster.pin)
    assert renewal.renewed == 1 and not renewal.may_be_due()
