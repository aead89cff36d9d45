"""Verify and Copy between real servers over TCP: who may order them, what is found, what is mended, what comes late, and what fails."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from xxhash import xxh3_128

from awsomefsd.base.limits import BLOCK_BYTES, SEGMENT_COPIES_MAX
from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, BAY_STALE, SEGMENT_LEASED, SEGMENT_METADATA, SEGMENT_SEALED
from awsomefsd.io.pool.bay_copies import Pace
from awsomefsd.io.pool.remote_errors import BayLost, MediumFailed, NobodyLeads, NotServed
from awsomefsd.io.pool.remote_server import RemoteServer, answer_by
from awsomefsd.io.pool.server import KnownNode
from awsomefsd.io.transport.messages import Copied, CopyOrder, CopySource, Verified, dumps, loads
from awsomefsd.io.transport.records import ENDS_ONLY, BulkRecord, Kind
from tests.rigs.bay_content import Content, content
from tests.rigs.patience import patient  # noqa: F401 - the fixture
from tests.rigs.segment_servers import ServedCluster, ServedNode, node_of, until

NODE = node_of(50)
MADE, BARE = content(seed=2), content(seed=2, footer=False)
PLANNED = 100  # of the rig's rows


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ServedCluster]:
    """Nodes 1 and 2 have the segment in bay 0; bay 3 of node 3 is being copied to."""
    made = ServedCluster(tmp_path, 3)
    for node in made.nodes[:2]:
        mirror(made, node, MADE)
    made.leader.put(3, 3, BAY_COPYING, 70, state=SEGMENT_SEALED, end=MADE.extent.end)
    yield made
    made.close()


def mirror(cluster: ServedCluster, node: ServedNode, made: Content) -> None:
    node.put(0, made.raw)
    cluster.leader.put(node.device, 0, BAY_MIRROR, 70, state=SEGMENT_SEALED, durable=len(made.raw), end=len(made.raw))


@pytest.fixture
def server(cluster: ServedCluster) -> RemoteServer:
    """The server of node 3, as a node that gives orders knows it."""
    return cluster.server(cluster.nodes[2], NODE)


def verify(server: RemoteServer, device: int, index: int = 0, made: Content = MADE, flags: int = 0, segment: int = 70) -> Verified:
    record = BulkRecord(Kind.VERIFY, 0, segment, 1, device, index, made.extent.end, made.extent.footer, flags)
    _, body = server.order(record, answer_by())
    return loads(body, Verified)


def sources(cluster: ServedCluster, *numbers: int) -> list[CopySource]:
    return [CopySource(node.endpoint, node.device, 0) for node in cluster.nodes if node.device in (numbers or (1, 2))]


def order_once(server: RemoteServer, order: CopyOrder, made: Content = MADE, index: int = 3) -> tuple[int, Copied]:
    body = dumps(order)
    record = BulkRecord(Kind.COPY, 0, 70, 1, 3, index, made.extent.end, made.extent.footer, body_bytes=len(body))
    answer, said = server.order(record, answer_by(), body)
    return answer.offset, loads(said, Copied)


def copy(server: RemoteServer, order: CopyOrder, made: Content = MADE) -> Copied:
    while True:
        _, copied = order_once(server, order, made)
        if copied.done:
            return copied


# --- Verify -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("made", [MADE, BARE])
def test_a_good_bay_is_verified_where_it_is(cluster: ServedCluster, made: Content) -> None:
    server = cluster.server(cluster.nodes[0], NODE)
    assert verify(server, 1, made=made) == Verified(len(made.frames), made.data_bytes)
    ends = verify(server, 1, made=made, flags=ENDS_ONLY)
    assert (ends.frames, ends.wrong_count) == (1, 0)


def test_what_is_wrong_is_named_with_its_place(cluster: ServedCluster) -> None:
    node, server = cluster.nodes[0], cluster.server(cluster.nodes[0], NODE)
    offset, header, stored = MADE.frames[1]
    node.put(0, b"\xff" * 8, offset + header + stored // 2)
    node.put(0, b"\xff" * 8, MADE.extent.footer + 64)
    found = verify(server, 1)
    assert found.wrong_count == 2 and found.frames == len(MADE.frames) - 1
    assert [one.offset for one in found.wrong] == [MADE.extent.footer, offset]
    assert "checksum" in found.wrong[1].what


def test_blocks_that_cannot_be_read_are_findings_and_a_dead_device_is_an_error(cluster: ServedCluster) -> None:
    node, server = cluster.nodes[0], cluster.server(cluster.nodes[0], NODE)
    offset, header, _ = MADE.frames[0]
    node.file.bad_blocks = {node.bays.place_of(0, offset + header) // BLOCK_BYTES * BLOCK_BYTES}
    found = verify(server, 1)
    assert any("cannot be read" in one.what for one in found.wrong) and found.frames == len(MADE.frames) - 1
    node.file.fail_reads = True
    with pytest.raises(MediumFailed, match="blocks cannot be read"):
        verify(server, 1)


def test_who_may_verify_and_what(cluster: ServedCluster) -> None:
    node = cluster.nodes[0]
    with pytest.raises(NotServed) as refused:
        verify(cluster.server(node), 1)
    assert refused.value.errno == errno.EACCES
    server = cluster.server(node, NODE)
    for device, index, number in ((9, 0, errno.ENODEV), (1, 99, errno.EINVAL)):
        with pytest.raises(NotServed) as refused:
            verify(server, device, index)
        assert refused.value.errno == number
    cluster.leader.lease(1, 5, 75, NODE)
    cluster.remote(node, NODE).open(5, 75, 1)
    with pytest.raises(BayLost, match="another segment"):
        verify(server, 1, 5)


def test_a_bay_that_is_given_away_while_it_is_verified_has_no_findings(cluster: ServedCluster) -> None:
    node, server = cluster.nodes[0], cluster.server(cluster.nodes[0], NODE)
    cluster.leader.lease(1, 0, 90, NODE)
    device = cluster.remote(node, NODE)
    opened: list[object] = []

    def open_once() -> None:
        if not opened:
            opened.append(None)
            opened.append(device.open(0, 90, 1))

    node.file.before_read = open_once
    with pytest.raises(BayLost, match="meanwhile"):
        verify(server, 1)


# --- Copy ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("made", [MADE, BARE])
def test_a_copy_is_the_same_bytes_and_the_order_may_be_repeated(cluster: ServedCluster, server: RemoteServer, made: Content) -> None:
    cluster.leader.bays[3, 3].end = made.extent.end
    copied = copy(server, CopyOrder(PLANNED, sources(cluster)), made)
    assert copied == Copied(True, xxh3_128(made.raw).digest(), len(made.frames), 0)
    assert cluster.nodes[2].medium(3, len(made.raw)) == made.raw
    cluster.nodes[2].file.fail_writes = True
    assert copy(server, CopyOrder(PLANNED, sources(cluster)), made) == copied, "it is not made again"
    assert verify(server, 3, 3, made) == Verified(len(made.frames), made.data_bytes)
    reader = cluster.remote(cluster.nodes[2]).bay(3, 70, 1)
    buffer = memoryview(bytearray(5_000))
    assert reader.pread_into(buffer, 100) == 5_000 and buffer == made.raw[100:5_100]


def test_what_is_bad_in_one_source_comes_from_the_next(cluster: ServedCluster, server: RemoteServer) -> None:
    first, second = cluster.nodes[:2]
    places = [(offset, header + stored) for offset, header, stored in MADE.frames]
    for number, (offset, size) in enumerate(places):
        (first if number % 2 else second).put(0, os.urandom(8), offset + size // 2 - 4)
    first.put(0, b"\xff" * 8, MADE.extent.footer + 70)
    copied = copy(server, CopyOrder(PLANNED, sources(cluster)))
    assert copied.digest == xxh3_128(MADE.raw).digest() and copied.wrong_count == 0
    assert copied.mended == len(places) // 2 + 1
    assert cluster.nodes[2].medium(3, len(MADE.raw)) == MADE.raw


def test_what_is_bad_everywhere_is_copied_as_it_is_and_named(cluster: ServedCluster, server: RemoteServer) -> None:
    offset, header, stored = MADE.frames[2]
    for number, node in enumerate(cluster.nodes[:2]):
        node.put(0, bytes([number + 1]) * 3, offset + header + stored // 2)
    copied = copy(server, CopyOrder(PLANNED, sources(cluster)))
    assert copied.done and [one.offset for one in copied.wrong] == [offset] and copied.wrong_count == 1
    assert cluster.nodes[2].medium(3, len(MADE.raw)) == cluster.nodes[0].medium(0, len(MADE.raw))


def test_a_source_that_is_away_or_cannot_read_is_passed_over(cluster: ServedCluster, server: RemoteServer) -> None:
    cluster.nodes[2].server.members({**cluster.everybody(), node_of(77): KnownNode("node", "127.0.0.1:1")})
    given = [CopySource(f"{node_of(77)}@127.0.0.1:1", 1, 0), *sources(cluster)]
    cluster.nodes[0].file.fail_reads = True
    copied = copy(server, CopyOrder(PLANNED, given))
    assert copied.digest == xxh3_128(MADE.raw).digest()
    cluster.leader.bays[3, 3].entry = 101
    cluster.nodes[1].file.fail_reads = True
    with pytest.raises(NotServed, match="no source has the bytes") as failed:
        copy(server, CopyOrder(101, given))
    assert failed.value.errno not in (0, errno.ESTALE)
    cluster.nodes[1].file.fail_reads = False
    assert copy(server, CopyOrder(101, given)).digest == copied.digest, "the same order begins again after a failure"


def test_a_copy_with_wrong_bytes_is_made_again_for_an_order_with_another_source(cluster: ServedCluster, server: RemoteServer) -> None:
    offset, header, stored = MADE.frames[2]
    cluster.nodes[0].put(0, b"rotted", offset + header + stored // 2)
    lacking = copy(server, CopyOrder(PLANNED, sources(cluster, 1)))
    assert lacking.wrong_count == 1 and copy(server, CopyOrder(PLANNED, sources(cluster, 1))) == lacking
    whole = copy(server, CopyOrder(PLANNED, sources(cluster)))
    assert whole.digest == xxh3_128(MADE.raw).digest() and (whole.mended, whole.wrong_count) == (1, 0)
    assert copy(server, CopyOrder(PLANNED, sources(cluster, 1))) == whole, "what is whole is not made again"


def test_what_only_a_source_that_is_away_may_have_right_is_not_copied_wrong(cluster: ServedCluster, server: RemoteServer) -> None:
    """Else the mirror that is away would be given up for a copy that lacks what it has."""
    (early, header, stored), (late, *_) = MADE.frames[1], MADE.frames[4]
    cluster.nodes[0].put(0, b"rotted", early + header + stored // 2)
    cluster.nodes[1].put(0, b"rotted", late + 100)
    cluster.nodes[1].server.stop()
    with pytest.raises(MediumFailed, match="another one is away"):
        copy(server, CopyOrder(PLANNED, sources(cluster)))
    cluster.nodes[1].start()
    copied = copy(server, CopyOrder(PLANNED, sources(cluster)))
    assert copied.digest == xxh3_128(MADE.raw).digest() and (copied.mended, copied.wrong_count) == (1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"role": BAY_STALE}, {"role": BAY_MIRROR}, {"segment": 71}, {"incarnation": 2}, {"entry": 101}, {"state": SEGMENT_LEASED},
        {"state": SEGMENT_METADATA}, {"end": 4096}, None,
    ],
)  # fmt: skip
def test_an_order_that_the_log_does_not_say_writes_nothing(
    cluster: ServedCluster, server: RemoteServer, change: dict[str, int] | None
) -> None:
    for name, value in (change or {}).items():
        setattr(cluster.leader.bays[3, 3], name, value)
    if change is None:
        del cluster.leader.bays[3, 3]
    with pytest.raises(BayLost, match="by that entry"):
        order_once(server, CopyOrder(PLANNED, sources(cluster)))
    assert not any(cluster.nodes[2].medium(3, len(MADE.raw)))


def test_without_the_leader_or_the_role_nothing_is_copied(cluster: ServedCluster, server: RemoteServer) -> None:
    cluster.leader.away = True
    with pytest.raises(NobodyLeads):
        order_once(server, CopyOrder(PLANNED, sources(cluster)))
    cluster.leader.away = False
    with pytest.raises(NotServed) as refused:
        order_once(cluster.server(cluster.nodes[2]), CopyOrder(PLANNED, sources(cluster)))
    assert refused.value.errno == errno.EACCES
    with pytest.raises(NotServed) as refused:
        copy(server, CopyOrder(PLANNED, [CopySource("somewhere", 1, 0)]))
    assert refused.value.errno == errno.EINVAL
    assert not any(cluster.nodes[2].medium(3, len(MADE.raw)))


def test_a_source_is_dialled_where_the_leaders_rows_say_and_nowhere_else(cluster: ServedCluster, server: RemoteServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        port = trap.getsockname()[1]
        elsewhere = [CopySource(f"{node_of(1)}@127.0.0.1:{port}", 1, 0)]
        assert copy(server, CopyOrder(PLANNED, elsewhere)).digest == xxh3_128(MADE.raw).digest(), "the node counts, not what was said of it"
        cluster.leader.bays[3, 3].entry = 101
        strange = [CopySource(f"{node}@127.0.0.1:{port}", 1, 0) for node in (node_of(77), NODE, cluster.CLIENT)]
        for source in strange:
            with pytest.raises(NotServed, match="no segment server of node") as refused:
                copy(server, CopyOrder(101, [source]))
            assert refused.value.errno == errno.EINVAL
        with pytest.raises(BlockingIOError):
            trap.accept()


@pytest.mark.parametrize(
    "source",
    [
        CopySource(f"{node_of(1)}@127.0.0.1:{'9' * 5_000}", 1, 0), CopySource(f"{node_of(1)}@127.0.0.1:1", 1 << 32, 0),
        CopySource(f"{node_of(1)}@127.0.0.1:1", 1, 1 << 63), CopySource(f"{node_of(1)}@127.0.0.1:1", -1, 0),
    ],
    ids=["port", "device", "index", "negative"],
)  # fmt: skip
def test_an_order_with_impossible_numbers_ends_no_thread(
    source: CopySource, cluster: ServedCluster, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that ends by an exception takes the process of the segment server with it, and so every bay that is open there."""
    died: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(repr(args.exc_value)))
    with pytest.raises(OSError):
        copy(server, CopyOrder(PLANNED, [source]))
    assert copy(cluster.server(cluster.nodes[2], NODE), CopyOrder(PLANNED, sources(cluster))).done
    assert not died


def test_a_copy_without_a_thread_is_refused_and_may_be_ordered_again(
    cluster: ServedCluster, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "segments-copy":
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(SEGMENT_COPIES_MAX + 1):
        with pytest.raises(NotServed, match="no thread") as refused:
            order_once(server, CopyOrder(PLANNED, sources(cluster)))
        assert refused.value.errno == errno.EBUSY
    monkeypatch.setattr(threading.Thread, "start", real)
    assert copy(server, CopyOrder(PLANNED, sources(cluster))).done


def test_a_device_that_is_given_up_ends_its_copies(
    cluster: ServedCluster, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awsomefsd.io.pool.bay_copies.SEGMENT_COPY_ANSWER_MS", 1)
    go = threading.Event()
    cluster.nodes[0].file.before_read = lambda: bool(go.wait(60)) and None
    order_once(server, CopyOrder(PLANNED, sources(cluster, 1)))
    node = cluster.nodes[2]
    node.server.give_up(3)
    assert node.server.figures()["segment_copies"] == 0
    go.set()
    with pytest.raises(NotServed) as refused:
        order_once(server, CopyOrder(PLANNED, sources(cluster)))
    assert refused.value.errno == errno.ENODEV


def test_an_order_that_is_repeated_joins_and_one_of_a_later_entry_takes_over(
    cluster: ServedCluster, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awsomefsd.io.pool.bay_copies.SEGMENT_COPY_ANSWER_MS", 1)
    go = threading.Event()
    for node in cluster.nodes[:2]:
        node.file.before_read = lambda: bool(go.wait(60)) and None
    order = CopyOrder(PLANNED, sources(cluster))
    for _ in range(3):
        assert order_once(server, order) == (0, Copied(False))
    assert cluster.nodes[2].server.figures()["segment_copies"] == 1
    with pytest.raises(BayLost):
        order_once(server, CopyOrder(99, sources(cluster)))
    cluster.leader.bays[3, 3].entry = 101
    assert not order_once(server, CopyOrder(101, sources(cluster)))[1].done
    go.set()
    assert copy(server, CopyOrder(101, sources(cluster))).digest == xxh3_128(MADE.raw).digest()
    until(lambda: cluster.nodes[2].server.figures()["segment_copies"] == 0)
    figures = cluster.nodes[2].server.figures()
    assert (figures["segment_copies_made"], figures["segment_copies_failed"]) == (1, 1)
    with pytest.raises(BayLost):
        order_once(server, order)


def test_a_bay_that_was_given_away_takes_no_more_bytes_of_a_copy(
    cluster: ServedCluster, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awsomefsd.io.pool.bay_copies.SEGMENT_COPY_ANSWER_MS", 1)
    go = threading.Event()
    cluster.nodes[0].file.before_read = lambda: bool(go.wait(60)) and None
    order_once(server, CopyOrder(PLANNED, sources(cluster, 1)))
    cluster.leader.lease(3, 3, 90, NODE)
    writer = cluster.remote(cluster.nodes[2], NODE).open(3, 90, 1)
    writer.append([memoryview(b"n" * BLOCK_BYTES)])
    assert writer.sync() == BLOCK_BYTES
    go.set()
    until(lambda: cluster.nodes[2].server.figures()["segment_copies"] == 0)
    assert cluster.nodes[2].server.figures()["segment_copies_failed"] == 1
    assert cluster.nodes[2].medium(3, 2 * BLOCK_BYTES) == b"n" * BLOCK_BYTES + bytes(BLOCK_BYTES)
    writer.append([memoryview(b"m" * BLOCK_BYTES)])
    assert writer.sync() == 2 * BLOCK_BYTES


def test_failed_writes_and_flushes_fail_the_copy(cluster: ServedCluster, server: RemoteServer) -> None:
    node, order = cluster.nodes[2], CopyOrder(PLANNED, sources(cluster))
    node.file.fail_writes = True
    with pytest.raises(MediumFailed):
        copy(server, order)
    node.file.fail_writes, node.file.fail_flushes = False, True
    with pytest.raises(BayLost, match="flush"):
        copy(server, order)
    node.file.fail_flushes = False
    assert copy(server, order).done


def test_so_many_copies_at_once_and_the_end_of_the_server_ends_them(
    cluster: ServedCluster, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awsomefsd.io.pool.bay_copies.SEGMENT_COPY_ANSWER_MS", 1)
    go = threading.Event()
    cluster.nodes[0].file.before_read = lambda: bool(go.wait(60)) and None
    for index in range(SEGMENT_COPIES_MAX + 1):
        cluster.leader.put(3, index, BAY_COPYING, 70, state=SEGMENT_SEALED, end=MADE.extent.end)
        if index < SEGMENT_COPIES_MAX:
            order_once(server, CopyOrder(PLANNED, sources(cluster, 1)), index=index)
    with pytest.raises(NotServed) as busy:
        order_once(server, CopyOrder(PLANNED, sources(cluster, 1)), index=SEGMENT_COPIES_MAX)
    assert busy.value.errno == errno.EBUSY
    cluster.nodes[2].server.stop()
    go.set()
    assert cluster.nodes[2].server.figures()["segment_copies"] == 0


def test_a_paced_copy_waits_for_its_time() -> None:
    waited: list[float] = []

    class Stop:
        def wait(self, seconds: float) -> None:
            waited.append(seconds)

    now = [0]
    pace = Pace(1 << 20, Stop(), lambda: now[0])
    pace.wait(1 << 19)
    pace.wait(1 << 19)
    now[0] = 10**9
    pace.wait(1 << 19)
    assert waited == [0.5, 1.0, 0.5]
    Pace(0, Stop(), lambda: now[0]).wait(1 << 30)
    assert len(waited) == 3
