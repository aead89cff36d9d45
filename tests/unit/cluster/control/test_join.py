"""A joiner whose clock is wrong is told that, and keeps nothing: with that certificate everybody would refuse it, without a reason."""

from __future__ import annotations

import datetime
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import Refused
from awsomefsd.cluster import messages as m
from awsomefsd.cluster.control.client import WrongAuthority, check_pin
from awsomefsd.cluster.control.join import accept
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.config.settings import Settings

CLUSTER, NODE = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


def test_a_certificate_that_is_not_good_by_this_clock_is_not_kept(tmp_path: Path) -> None:
    settings, files, authority = Settings(state_dir=tmp_path, run_dir=tmp_path / "run"), PkiFiles(tmp_path), ca.make_authority(CLUSTER)
    uuid_, key = files.pending()
    joined = m.Joined(ca.sign(authority, ca.make_request(key, uuid_), uuid_, "node"), authority.certificate, 0, [])
    for hours in (-2, 24 * 40):
        with pytest.raises(Refused, match="set the clocks"):
            accept(settings, files, CLUSTER, uuid_, "node", joined, lambda hours=hours: ca.now() + datetime.timedelta(hours=hours))  # type: ignore[misc]
    assert not files.certificate.exists()
    assert accept(settings, files, CLUSTER, uuid_, "node", joined).node == uuid_ and files.there()


def test_who_shows_a_certificate_of_another_time_is_no_man_in_the_middle() -> None:
    now = ca.now()
    authority = ca.make_authority(CLUSTER, now - datetime.timedelta(days=60))
    request = ca.make_request(ca.make_key(), NODE)
    greeting = m.Greeting(m.VERSION, CLUSTER, authority.certificate)
    for at, said in ((now, ""), (now - datetime.timedelta(days=40), "set the clock")):
        shown = ca.load(ca.sign(authority, request, NODE, "node", at)).public_bytes(ca.serialization.Encoding.DER)
        connection: Any = SimpleNamespace(endpoint="h:1", certificate=shown)
        if not said:
            check_pin(connection, greeting, bytes.fromhex(authority.id), CLUSTER)
            continue
        with pytest.raises(WrongAuthority, match=said):
            check_pin(connection, greeting, bytes.fromhex(authority.id), CLUSTER)
