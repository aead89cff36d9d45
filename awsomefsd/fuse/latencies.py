"""Histograms of how long requests of the kernel took, by kind: plain words behind the counters of the control area.

Each kind has one row of 16 words: how many requests took at most each bound (and no less than the bound before), how many took longer than
all, and the sum in nanoseconds.  As counters do, the words outlive the worker, and two threads that count at once may lose one of the two.
An area that was formatted by a build without histograms has zeros here, which is a row in which nothing was counted; such a build does
not touch them either.  So there is nothing to note of which build had the mount.

A request lasts from the moment when a reader has it until its reply is written.  How long it lay in the kernel before is not known.

Rejected: all kinds (a report has a bound, and most are rare), a dict of counters by kind and bucket (a look-up more for each request).
"""

from __future__ import annotations

from bisect import bisect_left

from awsomefsd.fuse.abi import OPCODES, Opcode

BOUNDS_US = (30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
ROW_WORDS = 16
LATENCY_WORDS = OPCODES * ROW_WORDS
TIMED = (
    Opcode.LOOKUP, Opcode.GETATTR, Opcode.SETATTR, Opcode.READLINK, Opcode.SYMLINK, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR,
    Opcode.RENAME, Opcode.RENAME2, Opcode.LINK, Opcode.OPEN, Opcode.CREATE, Opcode.READ, Opcode.WRITE, Opcode.FLUSH, Opcode.FSYNC,
    Opcode.RELEASE, Opcode.OPENDIR, Opcode.READDIR, Opcode.READDIRPLUS, Opcode.GETXATTR, Opcode.SETXATTR, Opcode.STATFS, Opcode.FALLOCATE,
    Opcode.COPY_FILE_RANGE,
)  # fmt: skip
_BOUNDS_NS = tuple(bound * 1_000 for bound in BOUNDS_US)
_SUM = len(BOUNDS_US) + 1
_SUFFIXES = (*(f"le_{bound}us" for bound in BOUNDS_US), "le_inf")

assert _SUM < ROW_WORDS


class Latencies:
    """The rows of one mount.  `rows` has the first word of each opcode's row by opcode, 0 for those that are not timed."""

    def __init__(self, words: memoryview, at: int) -> None:
        """`words` of the area, in which LATENCY_WORDS begin at `at`."""
        self._words = words
        self._at = at
        self.rows = [0] * OPCODES
        for opcode in TIMED:
            self.rows[opcode] = at + opcode * ROW_WORDS

    def clear(self) -> None:
        self._zero(self._at, LATENCY_WORDS)

    def count(self, row: int, took_ns: int) -> None:
        """Counts a request; any thread."""
        words = self._words
        try:
            words[row + bisect_left(_BOUNDS_NS, took_ns)] += 1
            words[row + _SUM] += took_ns
        except ValueError:  # it does not fit a word: the row was damaged, since a sum lasts for centuries
            self._zero(row, ROW_WORDS)

    def _zero(self, begin: int, count: int) -> None:
        for at in range(begin, begin + count):
            self._words[at] = 0

    def figures(self) -> dict[str, int]:
        """Returns what was counted, as a worker reports it: per kind the buckets that are not empty, and the sum.

        The names do not begin with "fuse_", nor end in a unit: daemons of before histograms would read them wrongly.
        """
        found: dict[str, int] = {}
        for opcode in TIMED:
            row = self.rows[opcode]
            counts = {suffix: count for at, suffix in enumerate(_SUFFIXES) if (count := int(self._words[row + at]))}
            if counts:
                name = f"request_{opcode.name.lower()}"
                found |= {f"{name}_{suffix}": count for suffix, count in counts.items()}
                found[f"{name}_ns_sum"] = int(self._words[row + _SUM])
        return found
