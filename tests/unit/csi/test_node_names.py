"""Events of Kubernetes name nodes as people know them."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.csi.controller import claim
from awsomefsd.csi.errors import CsiError
from awsomefsd.csi.volumes import DriverVolumes, FoundVolume

HOLDER, ASKER, VOTER = (f"0c07d680-be9a-424f-bf27-36fbb92b8a6{n}" for n in range(3))


def refused(nodes: list[Any] | None) -> str:
    def call(request: Any) -> Any:
        if nodes is None:
            raise Unavailable("no leader")
        return SimpleNamespace(nodes=nodes)

    def propose(command: Any) -> Any:
        raise FsError(errno.EBUSY, f"node {HOLDER} uses it alone, node {VOTER} as well")

    catalog: Any = SimpleNamespace(propose=propose)
    volume: Any = SimpleNamespace(volume=1, uuid="v")
    found = FoundVolume("handle", volume, "", None)
    with pytest.raises(CsiError) as caught:
        claim(DriverVolumes(call, catalog), found, ASKER, "boot", exclusive=True)
    assert caught.value.status == "FAILED_PRECONDITION"
    return str(caught.value)


def test_a_refusal_names_the_holder_by_its_name() -> None:
    rows = [SimpleNamespace(node=HOLDER, name="kn1"), SimpleNamespace(node=ASKER, name="kn2"), SimpleNamespace(node=VOTER, name="")]
    words = refused(rows)
    assert f"node kn1 ({HOLDER}) uses it alone, node {VOTER} as well" in words and f"by node kn2 ({ASKER})" in words


def test_without_the_names_the_refusal_is_told_all_the_same() -> None:
    assert f"node {HOLDER} uses it alone" in refused(None)
