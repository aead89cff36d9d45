"""A single voter keeps the promises of consensus.Consensus."""

from __future__ import annotations

import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.meta.api.commands import ChangeMembership, Entry
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.voter.ports import Consensus
from awsomefsd.meta.voter.single_voter import SeveralVoters, SingleVoter


def test_it_leads_and_confirms_reads_at_once(tmp_path):
    now = [5]
    single: Consensus = SingleVoter(Journal.open(tmp_path, b"c" * 16, b"n" * 16, create=True, file_bytes=64 << 10), "node", lambda: now[0])
    assert single.leading and single.leader == "node"
    assert single.reads_confirmed() >= single.request_read()
    now[0] = 7
    assert single.quorum_contact_ns() == 7
    assert single.next_deadline_ns() is None
    single.tick(8)
    assert single.ready() == [] and single.leading
    with pytest.raises(ProtocolError, match="one voter"):
        single.receive("other", object())
    single.close()


def test_every_start_is_a_new_term(tmp_path):
    """Sessions report their leases to a new term only, and what a leader numbered is gone with its process."""
    terms = []
    for create in (True, False, False):
        single = SingleVoter(Journal.open(tmp_path, b"c" * 16, b"n" * 16, create=create, file_bytes=64 << 10), "node", lambda: 0)
        terms.append(single.term)
        single.close()
    assert terms == [1, 2, 3]


def test_what_it_proposed_itself_it_replays_and_what_it_finds_it_refuses(tmp_path):
    """A full map at the commit that ends a growth replays the journal, the first membership in it included."""
    journal = Journal.open(tmp_path, b"c" * 16, b"n" * 16, create=True, file_bytes=64 << 10)
    single = SingleVoter(journal, "node", lambda: 0, refuse_several=True)
    single.propose([Entry(0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, [], ChangeMembership(single.first_membership("address")))])
    assert len(single.ready()) == 1
    assert [type(entry.command) for entry in single.replay(0)] == [ChangeMembership]
    single.close()

    journal = Journal.open(tmp_path, b"c" * 16, b"n" * 16, create=False, file_bytes=64 << 10)
    found = SingleVoter(journal, "node", lambda: 0, refuse_several=True)
    with pytest.raises(SeveralVoters):
        list(found.replay(0))
    found.close()
