"""A daemon as the pages ask it: what it answers is set by the test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from awsomefsd.admin.pb import admin_pb2 as pb


class UiDaemon:
    """Stands for AdminClient; `connect` is its constructor.  `error` is raised instead of an answer; `asked` has the RPCs."""

    def __init__(self) -> None:
        self.status = pb.Status(cluster="c", node="n", figures={"last_index": "3"})
        self.changes: list[pb.Change] = []
        self.figures: list[pb.Figure] = []
        self.monotonic_s = 0.0
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.done: list[tuple[str, dict[str, Any]]] = []  # RPCs with fields, and these

    def connect(self) -> Any:
        return self

    def __enter__(self) -> UiDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, rpc: str, timeout_s: float = 0, **fields: Any) -> Any:
        self.asked.append(rpc)
        getattr(pb, f"{rpc}Request")(**fields)  # it has them
        if rpc not in ("GetStatus", "GetFigures", "ListNodes"):
            self.done.append((rpc, fields))
        if self.error is not None:
            raise self.error
        if rpc == "GetStatus":
            return self.status
        if rpc == "GetFigures":
            return pb.GetFiguresReply(figures=self.figures, monotonic_s=self.monotonic_s)
        return getattr(pb, f"{rpc}Reply", pb.Status)()

    def follow(self, timeout_s: float | None = None, after: int = 0) -> Iterator[pb.Change]:
        self.asked.append(f"Follow {after}")
        for change in self.changes:
            if change.index > after:
                yield change
                if self.error is not None:
                    raise self.error
