"""Words of an error reach the client over a real channel, however long they are and whatever they name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from awsomefsd.admin import trailers
from awsomefsd.admin.cluster_service import ClusterRpcs
from awsomefsd.admin.grpc_errors import fail
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import Error, WouldLoseData


@contextmanager
def failing(place: Path, words: str) -> Iterator[Any]:
    """Gives a call that fails with these words."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: fail(context, WouldLoseData(words)) or b"")

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Handler(),))
    server.add_insecure_port(f"unix:{place}")
    server.start()
    try:
        with grpc.insecure_channel(f"unix:{place}") as channel:
            yield channel.unary_unary("/any/call")
    finally:
        server.stop(None).wait()


def seen(place: Path, words: str) -> Error:
    with failing(place, words) as call, pytest.raises(grpc.RpcError) as failed:
        call(b"", wait_for_ready=True)
    return trailers.to_error(failed.value)


@pytest.mark.parametrize("name", ["volume", "größe", "\U0001f600\n", "100%"])
def test_a_long_list_keeps_the_beginning_and_the_advice_at_the_end(tmp_path: Path, name: str) -> None:
    """The metadata of 4,096 volumes is lost with the last node, and the refusal has the command that does it at its end."""
    error = seen(tmp_path / "s", f"it is the last one ({', '.join([name] * 4_096)}); to do that, leave --yes-destroy C")
    assert isinstance(error, WouldLoseData)
    assert str(error).startswith(f"it is the last one ({name}") and str(error).endswith("; to do that, leave --yes-destroy C")


def test_other_words_arrive_as_they_are(tmp_path: Path) -> None:
    for number, words in enumerate(("größe 100%\nnext", "v" * 6_000)):
        assert str(seen(tmp_path / f"s{number}", words)) == words


def test_a_path_that_is_no_utf8_may_be_named(tmp_path: Path) -> None:
    error = seen(tmp_path / "s", "mounted here: /mnt/\udcff; unmount it")
    assert isinstance(error, WouldLoseData) and str(error) == "mounted here: /mnt/\\udcff; unmount it"


def test_what_a_purge_leaves_need_not_be_utf8() -> None:
    control: Any = SimpleNamespace(leave=lambda **words: ["notes", "\udcff"])
    assert list(ClusterRpcs(control).Leave(pb.LeaveRequest(), None).left) == ["notes", "\\xff"]  # type: ignore[arg-type]
