"""The RPCs about the change stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import msgspec

from awsomefsd.admin.grpc_errors import edge, fail
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.streams import Streams
from awsomefsd.base.errors import Error
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.api.commands.base import Command


class StreamRpcs:
    """The RPCs about the change stream.  Followers end when `stopping` is set; admin/server.py bounds their number."""

    def __init__(self, streams: Streams, stopping: threading.Event) -> None:
        self._streams = streams
        self._stopping = stopping

    def Follow(self, request: pb.FollowRequest, context: grpc.ServicerContext) -> Iterator[pb.Change]:
        try:
            going = lambda: context.is_active() and not self._stopping.is_set()  # noqa: E731
            for entry in self._streams.follow(request.after, request.reader, for_ever=request.follow, going=going):
                yield change_message(entry)
        except Error as err:
            fail(context, err)

    @edge
    def RemoveReader(self, request: pb.RemoveReaderRequest, context: grpc.ServicerContext) -> pb.RemoveReaderReply:
        self._streams.remove(request.name)
        return pb.RemoveReaderReply()


def change_message(entry: Entry) -> pb.Change:
    command = entry.command
    fields = {name: _plain(getattr(command, name)) for name in command.__struct_fields__}
    return pb.Change(
        index=entry.index,
        term=entry.term,
        time_ns=entry.time_ns,
        site=entry.site,
        stamp=entry.stamp,
        mount=entry.mount,
        unique=entry.unique,
        session=entry.session,
        epoch=entry.epoch,
        command=type(command).__name__,
        fields=json.dumps(fields),
    )


def _plain(value: Any) -> Any:
    """Returns a value as JSON can hold it; bytes (names) become text, and those that are no UTF-8 are escaped.

    A command within a command (a record of a batch) says which one it is.
    """
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, msgspec.Struct):
        said = {"operation": type(value).__name__} if isinstance(value, Command) else {}
        return said | {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
