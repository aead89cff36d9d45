"""What is counted of requests and bytes, and how it looks as metrics."""

from __future__ import annotations

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.status import samples_of
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.net.traffic import VOTER, Traffic
from tests.rigs.metadata_service import Wire, create, host


def test_requests_count_by_kind_and_bytes_in_both_directions(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        before = node.figures()
        assert before["requests:OpenSession"] == before["requests:Hello"] == 1
        for number in range(20):
            wire.ask(create(opened, 100 + number, b"f%d" % number))
        for _ in range(5):
            wire.ask(m.Lookup(1, 1, b"f1"))
        after = node.figures()
        wire.close()
        assert (after["requests:Create"], after["requests:Lookup"]) == (20, 5) and "requests:Propose" not in after
        received, sent = (after[f"bytes:client:local:{way}"] - before[f"bytes:client:local:{way}"] for way in ("received", "sent"))
        assert 25 * 20 < received < 25 * 400 and 25 * 20 < sent < 25 * 1_000


def test_a_tally_belongs_to_the_node_not_to_a_connection():
    traffic = Traffic(VOTER)
    traffic.of("a").sent += 5
    traffic.of("a").sent += 6
    traffic.of("b").received += 7
    assert traffic.figures() == {
        "bytes:voter:a:received": 0, "bytes:voter:a:sent": 11, "bytes:voter:b:received": 7, "bytes:voter:b:sent": 0,
    }  # fmt: skip


def test_they_are_counters_with_labels():
    figures = {"requests:Create": "20", "bytes:voter:some-node:sent": "11", "applied": "3"}
    found = {(one.name, one.labels): (one.kind, one.value) for one in samples_of(pb.Status(figures=figures))}
    assert found["awsomefsd_leader_requests_total", (("kind", "Create"),)] == ("counter", 20)
    bytes_sent = ("awsomefsd_peer_bytes_total", (("peer", "some-node"), ("way", "voter"), ("direction", "sent")))
    assert found[bytes_sent] == ("counter", 11) and found["awsomefsd_meta_applied", ()] == ("gauge", 3)
