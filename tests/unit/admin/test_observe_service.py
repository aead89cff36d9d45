"""The RPCs that look at files, trees and figures."""

from __future__ import annotations

import stat
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.admin import observe_service
from awsomefsd.admin.observe_service import ObserveRpcs
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.metrics import Registry
from awsomefsd.base.types import Attr, SegmentInfo
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.scrub import GetNames, NamePage
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.node.maintenance.collection_plan import CollectionPlan, LeftSegments, PlannedSet

FILE = Attr(3, stat.S_IFREG | 0o644, 1, 0, 0, 0, 5, 5, 0, 0, 0, 0, True)


class Catalog:
    def volume(self, name: str) -> Any:
        return SimpleNamespace(volume=1, name=name)

    def devices(self) -> list[Any]:
        return []

    def ask(self, body: Any) -> Any:
        if isinstance(body, GetNames):
            return NamePage({3: [(2, b"file")], 2: [(1, b"d")]}.get(body.ino, []), b"")
        return m.Found(FILE)


class Context:
    """A call of gRPC that goes on; `code` of an error."""

    code: Any = None

    def is_active(self) -> bool:
        return True

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_trailing_metadata(self, pairs: Any) -> None:
        pass

    def set_details(self, words: str) -> None:
        self.details = words


class Planned:
    """A collection that would do one thing; `meanwhile` is called while it plans."""

    meanwhile: Any = None

    def plan(self, volume: int, device: int, between: Any) -> CollectionPlan:
        between()
        if self.meanwhile is not None:
            self.meanwhile()
        info = SegmentInfo(7, 1, 2, 0, 1 << 20, 2, 0, 0, 0, 100)
        return CollectionPlan(50, 12, 3, 9, [PlannedSet("drain", [info], 100, 4096)], [LeftSegments("open", device, volume)])

    def next_look(self) -> tuple[str, float]:
        return "soon", 2.6


@pytest.fixture
def rpcs() -> ObserveRpcs:
    figures = Registry()
    figures.counter("awsomefsd_tests_total", "", kind="a").add(7)
    return ObserveRpcs(Catalog(), figures.samples, threading.Event(), Planned())  # type: ignore[arg-type]


def test_a_file(rpcs: ObserveRpcs) -> None:
    told = rpcs.GetFile(pb.GetFileRequest(volume="demo", inode=3), Context())
    assert (told.inode, told.size, told.inline_data, list(told.places)) == (3, 5, True, [])


def test_paths_of_inodes(rpcs: ObserveRpcs) -> None:
    told = rpcs.GetPaths(pb.GetPathsRequest(volume="demo", inodes=[3, 9, 1]), Context())
    assert [(one.inode, one.path) for one in told.paths] == [(3, "/d/file"), (9, ""), (1, "/")]
    refused = Context()
    rpcs.GetPaths(pb.GetPathsRequest(volume="demo", inodes=range(observe_service.PATHS_MAX + 1)), refused)
    assert refused.code is not None and "at most 1024" in refused.details


def test_figures_have_their_labels(rpcs: ObserveRpcs) -> None:
    told = {one.name: one for one in rpcs.GetFigures(pb.GetFiguresRequest(), Context()).figures}
    assert (told["awsomefsd_tests_total"].value, dict(told["awsomefsd_tests_total"].labels)) == (7, {"kind": "a"})


def test_the_last_summary_is_whole_and_few_are_made_at_once(rpcs: ObserveRpcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe_service, "TOLD_S", 0.0)
    ask = pb.SummarizeRequest(volume="demo", inode=3)
    told = list(rpcs.Summarize(ask, Context()))
    assert [one.done for one in told] == [False, True] and told[-1].bytes == 5
    open_ones = [rpcs.Summarize(ask, Context()) for _ in range(observe_service.SUMMARIES_MAX)]
    for one in open_ones:
        next(one)
    context = Context()
    assert list(rpcs.Summarize(ask, context)) == [] and context.code is not None
    for one in open_ones:
        one.close()  # type: ignore[attr-defined]
    assert list(rpcs.Summarize(ask, Context()))[-1].done, "places are given back"


def test_a_summary_ends_with_the_daemon(rpcs: ObserveRpcs) -> None:
    rpcs._stopping.set()
    context = Context()
    assert list(rpcs.Summarize(pb.SummarizeRequest(volume="demo", inode=3), context)) == [] and context.code is not None


def test_a_plan_of_collection_is_told_and_one_is_made_at_once(rpcs: ObserveRpcs) -> None:
    ask = pb.PlanCollectionRequest(volume="demo", device=2)
    told = rpcs.PlanCollection(ask, Context())
    assert (told.when, told.look_in_seconds, told.segments_free, told.dead_percent) == ("soon", 3, 3, 50)
    assert (list(told.sets[0].segments), told.sets[0].device, told.sets[0].freed_bytes) == ([7], 2, usable_bytes(1 << 20) - 4096)
    assert (told.left[0].reason, told.left[0].device, told.left[0].segments) == ("open", 2, 1)
    second = Context()
    rpcs._collection.meanwhile = lambda: rpcs.PlanCollection(ask, second)  # type: ignore[attr-defined]
    rpcs.PlanCollection(ask, Context())
    assert "try again" in second.details


def test_a_plan_ends_with_its_caller(rpcs: ObserveRpcs, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context()
    monkeypatch.setattr(context, "is_active", lambda: False)
    assert not rpcs.PlanCollection(pb.PlanCollectionRequest(), context).when and context.code is not None
