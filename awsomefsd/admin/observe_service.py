"""The RPCs that look at files, trees and figures.  They change nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Protocol

import grpc

from awsomefsd.admin.grpc_errors import edge, fail
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import Error, Overloaded, Refused, Unavailable
from awsomefsd.base.limits import COLLECT_LOW_FREE_PERCENT
from awsomefsd.base.metrics import Sample
from awsomefsd.meta.client.paths import path_of
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.maintenance.collection_plan import CollectionPlan
from awsomefsd.node.observing import FileReport, file_report, summaries

SUMMARIES_MAX = 2  # at once: each asks the leader for page after page
TOLD_S = 0.5
PATHS_MAX = 1_024
PATH_PAGES_MAX = 64  # questions for one of them: more than a path has directories, as a rule


class Planning(Protocol):
    """The collection of this node, as far as it says what it would do (node/maintenance/collection.py)."""

    def plan(self, volume: int, device: int, between: Callable[[], object]) -> CollectionPlan:
        """Returns what collection would do; `between` is called now and then, and may raise."""

    def next_look(self) -> tuple[str, float]:
        """Returns when it chooses next: a word, and seconds."""


class ObserveRpcs:
    """The RPCs that look; `samples` returns all figures of this moment.  Summaries and plans end when `stopping` is set."""

    def __init__(
        self, catalog: Catalog, samples: Callable[[], list[Sample]], stopping: threading.Event, collection: Planning
    ) -> None:
        self._catalog = catalog
        self._samples = samples
        self._stopping = stopping
        self._collection = collection
        self._planning = threading.Lock()
        self._free = threading.BoundedSemaphore(SUMMARIES_MAX)

    @edge
    def GetFile(self, request: pb.GetFileRequest, context: grpc.ServicerContext) -> pb.FileFacts:
        volume = self._catalog.volume(request.volume).volume
        paths = {one.device: one.path for one in self._catalog.devices()}
        return file_message(file_report(self._catalog.ask, volume, request.inode), paths)

    def Summarize(self, request: pb.SummarizeRequest, context: grpc.ServicerContext) -> Iterator[pb.Summary]:
        if not self._free.acquire(blocking=False):
            fail(context, Overloaded(f"{SUMMARIES_MAX} summaries are being made already; try again"))
            return
        try:
            yield from self._summaries(request, context)
        except Error as err:
            fail(context, err)
        finally:
            self._free.release()

    def _summaries(self, request: pb.SummarizeRequest, context: grpc.ServicerContext) -> Iterator[pb.Summary]:
        volume = self._catalog.volume(request.volume).volume
        told_s, told = time.monotonic(), None
        for told in summaries(self._catalog.ask, volume, request.inode):
            self._go_on(context)
            if time.monotonic() >= told_s + TOLD_S:
                told_s = time.monotonic()
                yield pb.Summary(**asdict(told))
        assert told is not None, "one is always told"
        yield pb.Summary(done=True, **asdict(told))

    def _go_on(self, context: grpc.ServicerContext) -> None:
        if self._stopping.is_set() or not context.is_active():
            raise Unavailable("the daemon ends; ask again")

    @edge
    def PlanCollection(self, request: pb.PlanCollectionRequest, context: grpc.ServicerContext) -> pb.CollectionPlan:
        volume = self._catalog.volume(request.volume).volume if request.volume else 0
        if not self._planning.acquire(blocking=False):
            raise Overloaded("a plan of collection is being made already; try again")
        try:
            made = self._collection.plan(volume, request.device, lambda: self._go_on(context))
        finally:
            self._planning.release()
        return plan_message(made, *self._collection.next_look())

    @edge
    def GetPaths(self, request: pb.GetPathsRequest, context: grpc.ServicerContext) -> pb.GetPathsReply:
        if len(request.inodes) > PATHS_MAX:
            raise Refused(f"at most {PATHS_MAX} inodes at once")
        volume = self._catalog.volume(request.volume).volume
        told = []
        for ino in request.inodes:
            if self._stopping.is_set() or not context.is_active():
                raise Unavailable("the daemon ends; ask again")
            path = path_of(self._catalog.ask, volume, ino, PATH_PAGES_MAX)
            told.append(pb.InodePath(inode=ino, path=path if path.startswith("/") else ""))
        return pb.GetPathsReply(paths=told)

    @edge
    def GetFigures(self, request: pb.GetFiguresRequest, context: grpc.ServicerContext) -> pb.GetFiguresReply:
        figures = [pb.Figure(name=one.name, kind=one.kind, labels=dict(one.labels), value=one.value) for one in self._samples()]
        return pb.GetFiguresReply(figures=figures, monotonic_s=time.monotonic())


def file_message(report: FileReport, paths: dict[int, str]) -> pb.FileFacts:
    """Returns a file as the API shows it; `paths` is device number → its path on this node, "" where it does not see it."""
    attr = report.attr
    return pb.FileFacts(
        inode=attr.ino, mode=attr.mode, nlink=attr.nlink, uid=attr.uid, gid=attr.gid, size=attr.size, stored_bytes=attr.stored_bytes,
        inline_data=attr.inline, extents=report.extents, cut=report.cut, segments=sum(len(one.segments) for one in report.places.values()),
        first_extents=[
            pb.FileExtent(offset=one.file_offset, length=one.length, device=device, segment=one.segment, frame_offset=one.frame_offset)
            for one, device in report.first
        ],
        places=[
            pb.FilePlace(
                device=one.device, path=paths.get(one.device, ""), segments=len(one.segments), extents=one.extents, bytes=one.bytes
            )
            for one in sorted(report.places.values(), key=lambda one: one.device)
        ],
    )  # fmt: skip


def plan_message(made: CollectionPlan, when: str, look_in_s: float) -> pb.CollectionPlan:
    return pb.CollectionPlan(
        when=when, look_in_seconds=round(look_in_s), dead_percent=made.percent, dead_percent_low=made.low_percent,
        low_free_percent=COLLECT_LOW_FREE_PERCENT, segments_free=made.segments_free, segments_total=made.segments_total,
        sets=[
            pb.PlannedSet(
                how=one.how, segments=[info.segment for info in one.segments], device=one.segments[0].device, live_bytes=one.live_bytes,
                copied_bytes=one.copied_bytes, freed_bytes=one.freed_bytes,
            )
            for one in made.sets
        ],
        left=[
            pb.LeftSegments(
                reason=one.reason, device=one.device, segments=one.segments, live_bytes=one.live_bytes, dead_bytes=one.dead_bytes
            )
            for one in made.left
        ],
    )  # fmt: skip
