"""Length-prefixed frames between worker and daemon: ``length (u32 LE) | body``.  Sans-IO: bytes in, frames out."""

from __future__ import annotations

import struct

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import RPC_FRAME_BYTES_MAX

_LENGTH = struct.Struct("<I")
pack_length = _LENGTH.pack
LENGTH_BYTES = _LENGTH.size


def frame(body: bytes) -> bytes:
    """Returns one frame around a body.  Raises ProtocolError above RPC_FRAME_BYTES_MAX."""
    if len(body) > RPC_FRAME_BYTES_MAX:
        raise ProtocolError(f"frame of {len(body)} bytes is over the bound of {RPC_FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Collects received bytes and returns whole frames, however the bytes were split.  One thread uses it."""

    __slots__ = ("_buffer", "bytes_max")

    def __init__(self, bytes_max: int = RPC_FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self.bytes_max = bytes_max  # of a frame that begins from now on

    @property
    def begun(self) -> bool:
        """True: a part of a frame has come, and not all of it."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the bodies that `data` completes, in order.  Raises ProtocolError for a length over the bound."""
        if not self._buffer and LENGTH_BYTES <= len(data) <= self.bytes_max and _LENGTH.unpack_from(data)[0] == len(data) - LENGTH_BYTES:
            return [data[LENGTH_BYTES:]]  # the usual case: exactly one frame, no copy through the buffer
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= LENGTH_BYTES:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self.bytes_max:
                raise ProtocolError(f"frame of {length} bytes is over the bound of {self.bytes_max}")
            if len(buffer) - start < LENGTH_BYTES + length:
                break
            frames.append(bytes(memoryview(buffer)[start + LENGTH_BYTES : start + LENGTH_BYTES + length]))
            start += LENGTH_BYTES + length
        if start:
            del buffer[:start]
        return frames
