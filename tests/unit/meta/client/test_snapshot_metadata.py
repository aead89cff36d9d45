"""A mount of a snapshot asks as of it, and nothing that it wants to change reaches the service."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import Signal, Wait, block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.snapshot_metadata import AS_OF, SnapshotMetadata
from awsomefsd.meta.server.leases.conflicts import QUESTIONS


class Service:
    """Notes what it is asked; a proposal is a mistake."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def ask(self, body: Any) -> Wait:
        self.asked.append(body)
        done = Signal()
        done.fire(m.Done())
        return done

    def session_token(self) -> tuple[int, int]:
        return 3, 4


def test_every_question_whose_answer_a_snapshot_has_is_asked_as_of_it() -> None:
    service = Service()
    metadata = SnapshotMetadata(service, 7)  # type: ignore[arg-type]
    for body in (
        m.Lookup(1, 2, b"a"), m.GetAttr(1, 2), m.ReadDir(1, 2, 3, 4, True), m.ReadLink(1, 2), m.GetParent(1, 2),
        m.GetXattr(1, 2, b"user.a"), m.ListXattr(1, 2), m.GetLayout(1, 2, 3, 4),
    ):  # fmt: skip
        assert block_on(metadata.ask(body)) == m.Done()
        assert service.asked[-1].at == 7 and body.at == 0, "the caller's question is its own"
    assert {type(body) for body in service.asked} == AS_OF
    assert {one for one in QUESTIONS if "at" in one.__struct_fields__} == AS_OF, "a question about files that is not asked as of it"
    block_on(metadata.ask(m.GetStatFs(1)))
    assert service.asked[-1] == m.GetStatFs(1) and metadata.session_token() == (3, 4)


def test_nothing_is_changed_and_nobody_hears_of_it() -> None:
    service = Service()
    metadata = SnapshotMetadata(service, 7)  # type: ignore[arg-type]
    for refused in (metadata.propose(c.SetAtimes(1, []), 5), metadata.wait_lock(c.SetLock(1, 2, 0, 3, 4, 1, 0, 9), 6)):
        with pytest.raises(FsError) as said:
            block_on(refused)
        assert said.value.errno == errno.EROFS
    assert service.asked == []
