"""A segment server carries out the requests of one connection, in their order.

The gate says who may write; the leader says what a bay is.  It is asked, by a read that no later entry can overtake, under the lock of
the bay, before the bay is given to a segment or copied to, and before it is trimmed: an order may come late, from a leader that is none
any more.  Where it cannot be asked the request fails with EAGAIN and nothing has happened.

A node of role client may open, append and read what its sessions lease, and read what segments of users hold; not beyond their ends,
where a bay may have what it held before, and never a bay of the metadata's own segments.  What a bay holds may change while it is read, so
that is looked at again before the bytes are sent; every change of what a bay holds goes through this process and its gate.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec.structs import replace

from awsomefsd.base.errors import Error, FsError, ProtocolError
from awsomefsd.base.limits import BLOCK_BYTES, SEGMENT_BODY_BYTES_MAX, SEGMENT_BUFFERS_MAX
from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, BAY_STALE, SEGMENT_LEASED, SEGMENT_SEALED
from awsomefsd.io.device.buffers import BufferPool, BufferShare
from awsomefsd.io.pool.bay_copies import BayCopies
from awsomefsd.io.pool.bay_findings import BayMedium, Findings, verify
from awsomefsd.io.pool.bay_walk import BayExtent
from awsomefsd.io.pool.device_bays import DeviceBays
from awsomefsd.io.pool.gate import Bay, BayContent, Gate
from awsomefsd.io.transport.link import SEALED_BODY_BYTES_MAX, BulkLink
from awsomefsd.io.transport.messages import BulkHello, Copied, CopyOrder, Verified, dumps, loads, reason
from awsomefsd.io.transport.records import ANSWER, ENDS_ONLY, BulkRecord, Kind
from awsomefsd.meta.api.messages.devices import BayInfo

_ROOM_AT = SEGMENT_BODY_BYTES_MAX + 2 * BLOCK_BYTES  # a plain body that begins and ends inside of blocks
_BUFFER_BYTES = _ROOM_AT + SEALED_BODY_BYTES_MAX


class BayRows(Protocol):
    """What the leader says of a bay."""

    def bay(self, device: int, index: int) -> BayInfo | None:
        """Returns what the log says now (None: the bay is free).  Blocks; raises Error (Unavailable) when nobody can say."""


def body_buffers() -> BufferPool:
    """Returns the memory of a server for bodies: a plain and a sealed one in each buffer."""
    return BufferPool(SEGMENT_BUFFERS_MAX, _BUFFER_BYTES)


class BayRequests:
    """The requests of one connection, whose Hello was accepted.  One thread."""

    def __init__(
        self, link: BulkLink, number: int, hello: BulkHello, role: str, devices: Mapping[int, DeviceBays], gate: Gate,
        changed: threading.Condition, rows: BayRows, buffers: BufferShare, copies: BayCopies,
    ) -> None:  # fmt: skip
        """`number`: of the connection, for the gate.  `role`: of the node at the other end, as `buffers`."""
        self._link, self._number, self._hello, self._role = link, number, hello, role
        self._devices, self._gate, self._changed, self._rows, self._buffers = devices, gate, changed, rows, buffers
        self._copies = copies
        self._using: DeviceBays | None = None  # by the request that is being done
        self._do: dict[Kind, Callable[[BulkRecord], BulkRecord]] = {
            Kind.OPEN: self._open, Kind.SYNC: self._sync, Kind.CLOSE: self._close, Kind.TRIM: self._trim,
        }  # fmt: skip

    def serve_one(self) -> None:
        """Receives a request and answers it.  Raises OSError or ProtocolError when the connection is over."""
        record = self._link.receive()
        try:
            if record.kind is Kind.APPEND:
                self._append(record)
            elif record.kind is Kind.READ:
                self._read(record)
            elif record.kind in (Kind.VERIFY, Kind.COPY):
                answer, message = self._verify(record) if record.kind is Kind.VERIFY else self._copy(record)
                body = dumps(message)
                self._link.send(replace(answer, body_bytes=len(body)), [memoryview(body)])
            elif record.kind in self._do:
                self._link.send(self._do[record.kind](record))
            else:
                raise ProtocolError(f"{record.kind.name} is no request that is served here")
        except _Failed as failed:
            words = reason(failed.words)
            answer = BulkRecord(
                Kind(record.kind | ANSWER), record.call, record.segment, record.incarnation, record.device, record.index,
                errno=failed.errno, body_bytes=len(words),
            )  # fmt: skip
            self._link.send(answer, [memoryview(words)] if words else [])
        finally:
            if self._using is not None:
                self._using.leave()
                self._using = None

    # --- writing --------------------------------------------------------------------------------------------------------
    def _open(self, record: BulkRecord) -> BulkRecord:
        device, bay = self._device(record)
        with device.lock_of(record.index):
            with self._changed, _answered():
                self._gate.check_unopened(bay, record.segment, record.incarnation)
            self._check_leased(record)
            with self._changed, _answered():
                self._gate.open(bay, record.segment, record.incarnation, self._number)
        return _answer(record, value=device.device.physical_block_bytes)

    def _check_leased(self, record: BulkRecord) -> None:
        info = self._ask(record)
        wanted = (BAY_MIRROR, record.segment, record.incarnation, SEGMENT_LEASED, self._hello.session, self._hello.epoch, self._hello.node)
        if info is None or (info.role, info.segment, info.incarnation, info.state, info.session, info.epoch, info.node) != wanted:
            raise _Failed(errno.ESTALE, "this bay is not leased to this session for this segment")
        if info.end or info.durable:
            raise _Failed(errno.ESTALE, "the segment has committed bytes: it was opened before")

    def _append(self, record: BulkRecord) -> None:
        with self._buffers.borrow() as buffer:
            body = self._link.receive_body(record, buffer[:SEGMENT_BODY_BYTES_MAX], buffer[_ROOM_AT : _ROOM_AT + SEALED_BODY_BYTES_MAX])
            device, bay = self._device(record)
            place = device.place_of(record.index, 0) + record.offset
            with device.lock_of(record.index):
                with self._changed, _answered():
                    self._gate.begin_append(
                        bay, record.segment, record.incarnation, self._number, record.offset, len(body), device.bay_bytes
                    )
                why = self._write(device, body, place)
                with self._changed, _answered(why):
                    self._gate.end_append(bay, failed=why is not None)

    def _write(self, device: DeviceBays, body: memoryview, place: int) -> OSError | None:
        try:
            device.write(body, place)
        except OSError as err:
            return err
        return None

    def _sync(self, record: BulkRecord) -> BulkRecord:
        device, _ = self._device(record)
        with _answered():
            device.sync(record.index, record.segment, record.incarnation, self._number, record.offset)
        return _answer(record, offset=record.offset)

    def _close(self, record: BulkRecord) -> BulkRecord:
        device, bay = self._device(record)
        with device.lock_of(record.index), self._changed, _answered():
            durable = self._gate.close(bay, record.segment, record.incarnation, self._number)
        return _answer(record, offset=durable)

    # --- reading and trimming -------------------------------------------------------------------------------------------
    def _read(self, record: BulkRecord) -> None:
        device, bay = self._device(record)
        place = device.place_of(record.index, record.offset)
        length = min(record.value, device.bay_bytes - record.offset)
        held = self._content(record, device, bay)
        if self._role != "node":
            assert held is not None
            length = min(length, max(0, held.written - record.offset))
        start, end = place // BLOCK_BYTES * BLOCK_BYTES, -(-(place + length) // BLOCK_BYTES) * BLOCK_BYTES
        with self._buffers.borrow() as buffer:
            try:
                device.read(buffer[: end - start], start)
            except OSError as err:
                raise _Failed(errno.EIO, f"device {record.device}: {err.strerror}") from None
            with self._changed:
                again = self._gate.held(bay)
            if (again and again.version) != (held and held.version):
                raise _Failed(errno.ESTALE, "the bay was given to another segment meanwhile")
            body = buffer[place - start : place - start + length]
            room = buffer[_ROOM_AT : _ROOM_AT + SEALED_BODY_BYTES_MAX]
            self._link.send(_answer(record, offset=record.offset, body_bytes=length), [body] if length else [], room)

    def _content(self, record: BulkRecord, device: DeviceBays, bay: Bay) -> BayContent | None:
        """Returns what the gate knows of the bay, None if nothing.  For a client node the leader is asked what it does not know."""
        with self._changed:
            held = self._gate.held(bay)
        if self._role != "node" and (held is None or (held.learnt and record.offset + record.value > held.written)):
            with device.lock_of(record.index):
                held = self._learn(record, bay)
        if held is not None and (held.segment, held.incarnation) != (record.segment, record.incarnation):
            raise _Failed(errno.ESTALE, "the bay holds another segment")
        return held

    def _learn(self, record: BulkRecord, bay: Bay) -> BayContent:
        info = self._ask(record)
        if info is None or info.role != BAY_MIRROR or info.segment != record.segment or info.incarnation != record.incarnation:
            raise _Failed(errno.ESTALE, "the bay holds another segment")
        if info.state not in (SEGMENT_LEASED, SEGMENT_SEALED):
            raise _Failed(errno.EACCES, "a node of role client may not read this segment")
        with self._changed:
            self._gate.learn(bay, info.segment, info.incarnation, info.durable)
            held = self._gate.held(bay)
        assert held is not None
        return held

    def _trim(self, record: BulkRecord) -> BulkRecord:
        device, bay = self._ordered(record)
        with device.lock_of(record.index):
            info = self._ask(record)
            if info is None or (info.role, info.segment, info.entry) != (BAY_STALE, record.segment, record.value):
                raise _Failed(errno.ESTALE, "this bay is not stale by that entry")
            with self._changed:
                self._gate.forget(bay, record.segment)
        return _answer(record, value=record.value)

    # --- verifying and copying ------------------------------------------------------------------------------------------
    def _verify(self, record: BulkRecord) -> tuple[BulkRecord, Verified]:
        device, bay = self._ordered(record)
        with self._changed:
            held = self._gate.held(bay)
        if held is not None and (held.segment, held.incarnation) != (record.segment, record.incarnation):
            raise _Failed(errno.ESTALE, "the bay holds another segment")
        findings = Findings()
        with self._buffers.borrow() as buffer:
            medium = BayMedium(device, record.index, buffer, findings)
            try:
                found = verify(_extent(record), medium.read, findings, ends_only=bool(record.flags & ENDS_ONLY))
            except OSError as err:
                raise _Failed(errno.EIO, f"device {record.device}: {err.strerror}") from None
        with self._changed:
            again = self._gate.held(bay)
        if (again and again.version) != (held and held.version):
            raise _Failed(errno.ESTALE, "the bay was given to another segment meanwhile")
        return _answer(record), found

    def _copy(self, record: BulkRecord) -> tuple[BulkRecord, Copied]:
        order = loads(self._link.receive_small(record), CopyOrder)
        device, bay = self._ordered(record)

        def check() -> None:
            info = self._ask(record)
            wanted = (BAY_COPYING, record.segment, record.incarnation, SEGMENT_SEALED, order.planned, record.offset)
            if info is None or (info.role, info.segment, info.incarnation, info.state, info.entry, info.end) != wanted:
                raise _Failed(errno.ESTALE, "this bay is not copied to, for this segment and by that entry")

        with _answered():
            done, copied = self._copies.order(device, bay, _extent(record), order, check)
        return _answer(record, offset=done), copied

    def _ordered(self, record: BulkRecord) -> tuple[DeviceBays, Bay]:
        """Returns the bay of an order, which only a node of role node may give."""
        if self._role != "node":
            raise _Failed(errno.EACCES, f"a node of role client may not order {record.kind.name.lower()}")
        return self._device(record)

    # --- of all ---------------------------------------------------------------------------------------------------------
    def _device(self, record: BulkRecord) -> tuple[DeviceBays, Bay]:
        device = self._devices.get(record.device)
        if device is None or not device.enter():
            raise _Failed(errno.ENODEV, f"device {record.device} is not attached here")
        assert self._using is None
        self._using = device
        with _answered():
            device.place_of(record.index, record.offset)
            if record.index >= device.bays:
                raise FsError(errno.EINVAL, "there is no such bay")
        return device, Bay(record.device, record.index)

    def _ask(self, record: BulkRecord) -> BayInfo | None:
        try:
            return self._rows.bay(record.device, record.index)
        except Error as err:
            raise _Failed(errno.EAGAIN, f"the leader cannot be asked: {err}") from None


class _Failed(Exception):
    """A request that fails; its connection goes on."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.errno, self.words = number, words


class _answered:
    """Inside the `with`, an FsError is the answer; with `why` its errno and words are."""

    def __init__(self, why: OSError | None = None) -> None:
        self._why = why

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, err: BaseException | None, _trace: object) -> None:
        if isinstance(err, FsError):
            if self._why is not None:
                raise _Failed(self._why.errno or errno.EIO, f"the write failed: {self._why.strerror}") from None
            raise _Failed(err.errno, str(err)) from None


def _extent(record: BulkRecord) -> BayExtent:
    return BayExtent(record.segment, record.incarnation, record.offset, record.value)


def _answer(record: BulkRecord, **fields: int) -> BulkRecord:
    return BulkRecord(
        Kind(record.kind | ANSWER), record.call, record.segment, record.incarnation, record.device, record.index, **fields
    )  # fmt: skip
