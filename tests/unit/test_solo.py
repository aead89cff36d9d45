"""A single voter keeps the promises of consensus.Consensus."""

from __future__ import annotations

import pytest

from awsomefsd.errors import ProtocolError
from awsomefsd.meta.commands import ChangeMembership, Entry
from awsomefsd.meta.consensus import Consensus
from awsomefsd.meta.journal import Journal
from awsomefsd.meta.solo import SeveralVoters, Solo


def test_it_leads_and_confirms_reads_at_once(tmp_path):
    now = [5]
    solo: Consensus = Solo(Journal.open(tmp_path, b"c" * 16, b"n" * 16, create=True, file_bytes=64 << 10), "node", lambda: now[0])
    assert solo.leading and solo.leader == "node"
    assert solo.reads_confirmed() >= solo.request_read()
    now[0] = 7
    assert solo.quorum_contact_ns() == 7
    assert solo.next_deadline_ns() is None
    solo.tick(8)
    assert solo.ready() == [] and solo.leading
    with pytest.raises(ProtocolError, match="one voter"):
        solo.receive("other", object())
    solo.close()


def test_every_start_is_a_new_term(tmp_path):
    """Sessions report their leases to a new term only, and what a leader numbered is gone with its process."""
    terms = []
    for create in (True, False, False):
        solo = Solo(Journal.open(tmp_path, b"c" * 16, b"n" * 16, create=create, file_bytes=64 << 10), "node", lambda: 0)
        terms.append(solo.term)
        solo.close()
    assert terms == [1, 2, 3]


def test_what_it_proposed_itself_it_replays_and_what_it_finds_it_refuses(tmp_path):
    """A full map at the commit that ends a growth replays the journal, the first membership in it included."""
    solo = Solo(Journal.open(tmp_path, b"c" * 16, b"n" * 16, create=True, file_bytes=64 << 10), "node", lambda: 0, single=True)
    solo.propose([Entry(0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, [], ChangeMembership(solo.first_membership("address")))])
    assert len(solo.ready()) == 1
    assert [type(entry.command) for entry in solo.replay(0)] == [ChangeMembership]
    solo.close()

    found = Solo(Journal.open(tmp_path, b"c" * 16, b"n" * 16, create=False, file_bytes=64 << 10), "node", lambda: 0, single=True)
    with pytest.raises(SeveralVoters):
        list(found.replay(0))
    found.close()
