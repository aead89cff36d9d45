"""The walk over what a bay holds: frame after frame, with its padding, to the footer; every byte up to the end belongs to one tile.  Pure.

    tile     a frame with its padding, padding of a batch, or, where there should be a frame and is none, what lies up to the next one

A frame counts if its header is good, of this segment and incarnation, numbered above the one before it, and every block of its data has
its checksum; what follows it up to its alignment is zero.  So a byte that rotted, a write that was lost (zeros, or what the bay held
before) and one that went astray are all found, also in frames in which nothing lives any more.

Where a header is bad the next frame is found by the footer; without one by looking for a header of this segment at every place where one
may begin.  That may be deceived by a file that holds a copy of a segment, to the effect that what is bad anyhow is cut differently.

Bays of the metadata's own segments hold no frames, and are not for this walk.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import BLOCK_BYTES, FRAME_BYTES_MAX, MIB
from awsomefsd.io.device.checksum import Bytes, first_mismatch, seed_of
from awsomefsd.io.segment.footer import ChecksumTable, check_sum, unpack_footer
from awsomefsd.io.segment.frame import FRAME_ALIGN, LARGE_FRAME_BYTES, MAGIC, Frame, align_up, unpack_header

TILE_BYTES_MAX = FRAME_BYTES_MAX + BLOCK_BYTES
FOOTER_TABLE_BYTES_MAX = 2 * MIB  # a larger footer is only checked by its sum


class BayExtent(Struct, frozen=True):
    """What is to be in a bay: a segment up to `end`, with its footer at `footer` (0: it has none).  All of them whole blocks."""

    segment: int
    incarnation: int
    end: int
    footer: int = 0

    @property
    def data_end(self) -> int:
        return self.footer or self.end


class Tile(Struct, frozen=True):
    """The next bytes of a bay: how many, what is wrong with them ("": nothing), and data bytes and number of a good frame."""

    length: int
    wrong: str = ""
    data_bytes: int = 0
    sequence: int = 0


class BayWalk:
    """A walk over one bay.  `table`: of its footer, if that could be read."""

    def __init__(self, extent: BayExtent, table: ChecksumTable | None = None) -> None:
        assert 0 <= extent.footer <= extent.end and extent.end % BLOCK_BYTES == extent.footer % BLOCK_BYTES == 0
        self.extent, self._table = extent, table
        self.position = 0
        self._sequence = 0
        self.frames = self.data_bytes = 0

    def wanted(self) -> int:
        """Returns how many bytes from `position` on `judge` has to see; 0 when the walk has come to the end of the frames."""
        return min(TILE_BYTES_MAX, self.extent.data_end - self.position)

    def needed(self, view: memoryview) -> int:
        """Returns how many bytes from `position` on `judge` has to see, now that the first of them are known: `wanted` at most."""
        view = view[: self.wanted()]
        padding = self._padding_bytes(view) if view else 0
        if padding:
            return padding
        try:
            frame = unpack_header(view[:BLOCK_BYTES])
        except (Corrupt, FormatTooNew):
            return self.wanted()
        return min(_frame_bytes(frame), self.wanted()) if not self._misplaced(frame) else self.wanted()

    def judge(self, view: memoryview) -> Tile:
        """Returns the tile that begins at `position`, of which `view` has the first `needed` bytes at least.  Takes no step."""
        view = view[: self.wanted()]
        assert view
        padding = self._padding_bytes(view)
        if padding:
            return Tile(padding, "padding is not zero" if any(view[:padding]) else "")
        try:
            frame = unpack_header(view[:BLOCK_BYTES])
            length, wrong = self._judge_frame(view, frame)
        except (Corrupt, FormatTooNew) as err:
            return self._lost(view, str(err))
        if wrong:
            return self._lost(view, wrong) if not length else Tile(length, wrong)
        return Tile(length, "", frame.stored_bytes, frame.sequence)

    def step(self, tile: Tile) -> None:
        """Goes on behind a tile, which was judged in these bytes or in those of another mirror."""
        assert 0 < tile.length <= self.wanted()
        self.position += tile.length
        if tile.sequence:
            self._sequence = tile.sequence
            self.frames += 1
            self.data_bytes += tile.data_bytes

    def _padding_bytes(self, view: memoryview) -> int:
        """Returns how many bytes there are before the next frame, of which nothing is wanted but that they are zero.

        Without a table they are zero: where they are not, a frame may have lost its header.
        """
        if self._table is not None:
            behind = self._table.next_offset(self.position)
            return min(behind - self.position, len(view)) if behind >= 0 else len(view)
        rest = min(-self.position % BLOCK_BYTES, len(view))
        return rest if not any(view[:rest]) else 0

    def _judge_frame(self, view: memoryview, frame: Frame) -> tuple[int, str]:
        """Returns the length of a frame with its padding, and what is wrong; a length of 0: it is no frame of this place at all."""
        wrong = self._misplaced(frame)
        size = frame.header_bytes + frame.stored_bytes
        if not wrong and size > len(view):
            wrong = f"frame {frame.sequence} reaches beyond the end"
        if wrong:
            return 0, wrong
        length = min(_frame_bytes(frame), len(view))
        bad = first_mismatch(view[frame.header_bytes : size], frame.checksums, seed_of(frame.segment, frame.incarnation, frame.sequence))
        if bad >= 0:
            return length, f"frame {frame.sequence}: checksum mismatch in block {bad}"
        return length, f"frame {frame.sequence}: padding is not zero" if any(view[size:length]) else ""

    def _misplaced(self, frame: Frame) -> str:
        """Returns why a frame, whose header is good, is none of this place; "" if it is one."""
        extent = self.extent
        if (frame.segment, frame.incarnation) != (extent.segment, extent.incarnation):
            return f"a frame of segment {frame.segment} in incarnation {frame.incarnation}"
        listed = self._table.find(self.position) if self._table is not None else None
        in_table = self._table is None or (listed is not None and listed.sequence == frame.sequence)
        if frame.sequence <= self._sequence or not in_table or (frame.stored_bytes >= LARGE_FRAME_BYTES and self.position % BLOCK_BYTES):
            return f"frame {frame.sequence} does not belong here"
        return ""

    def _lost(self, view: memoryview, why: str) -> Tile:
        """The bytes up to the next frame, as far as they are seen."""
        if self._table is not None:
            behind = self._table.next_offset(self.position + 1)
            stop = behind - self.position if behind >= 0 else len(view)
            return Tile(min(stop, len(view)), why)
        ends = self.position + len(view) == self.extent.data_end
        limit = len(view) if ends else len(view) - BLOCK_BYTES  # a header that begins behind it may not be seen whole
        raw = bytes(view)
        at = raw.find(MAGIC, 1)
        while 0 < at < limit:
            if at % FRAME_ALIGN == 0 and self._is_ours(view[at : at + BLOCK_BYTES]):
                return Tile(at, why)
            at = raw.find(MAGIC, at + 1)
        return Tile(limit, why)

    def _is_ours(self, raw: memoryview) -> bool:
        try:
            frame = unpack_header(raw)
        except (Corrupt, FormatTooNew):
            return False
        return (frame.segment, frame.incarnation) == (self.extent.segment, self.extent.incarnation) and frame.sequence > self._sequence


def _frame_bytes(frame: Frame) -> int:
    """Returns the length of a frame with its padding."""
    return align_up(frame.header_bytes + frame.stored_bytes, BLOCK_BYTES if frame.stored_bytes >= LARGE_FRAME_BYTES else FRAME_ALIGN)


# --- footer -------------------------------------------------------------------------------------------------------------
def read_footer(extent: BayExtent, read: Callable[[int, int], Bytes]) -> tuple[ChecksumTable | None, str]:
    """Returns the table of a footer (None of one that is very large, or bad), and what is wrong with it.

    `read(offset, length)` returns bytes of the bay, for up to FOOTER_TABLE_BYTES_MAX.  Raises what `read` raises.
    """
    size = extent.end - extent.footer
    try:
        if size > FOOTER_TABLE_BYTES_MAX:
            check_sum(
                extent.segment, extent.incarnation, extent.footer, size, lambda at, length: read(extent.footer + at, length), TILE_BYTES_MAX
            )  # fmt: skip
            return None, ""
        table = unpack_footer(read(extent.footer, size), extent.segment, extent.incarnation)
    except (Corrupt, FormatTooNew) as err:
        return None, str(err)
    if table.data_end != extent.footer:
        return None, f"a footer of other data, which ends at {table.data_end}"
    return table, ""


def last_frame(extent: BayExtent, view: memoryview) -> str:
    """Returns what is wrong with the last frame before `data_end`; `view` is the last TILE_BYTES_MAX bytes there, or all of them."""
    raw = bytes(view)
    start = extent.data_end - len(raw)
    at = raw.rfind(MAGIC)
    while at >= 0:
        if at % FRAME_ALIGN == 0:
            walk = BayWalk(extent)
            walk.position = start + at
            tile = walk.judge(view[at:])
            if tile.sequence and align_up(walk.position + tile.length, BLOCK_BYTES) == extent.data_end:
                return ""
        at = raw.rfind(MAGIC, 0, at)
    return "the last frame is not there, or not as it was written"
