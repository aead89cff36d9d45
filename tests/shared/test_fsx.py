"""One file, each operation through the mount of another node, against a buffer that says what has to be there."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shared import rig
from tests.shared.programs import Program
from tests.shared.rig import SharedVolume
from tests.shared.tasks import fallocate

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
everywhere = pytest.mark.parametrize("shared_volume", rig.all_modes(), indirect=True)
FILE_BYTES, PIECE_BYTES = 256 * 1024, 64 * 1024
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
OPERATIONS = 2_000
LAST = 12  # operations shown with a failure


class Fsx:
    def __init__(self, places: list[Path], seed: int, maps: bool) -> None:
        self.mapper = Program()  # SIGBUS ends it, not the test
        self.maps = maps
        self.dice = random.Random(seed)
        self.model = bytearray()
        (places[0] / "f").touch()
        self.paths = [place / "f" for place in places]
        self.files = [os.open(path, os.O_RDWR) for path in self.paths]
        self.appending = [os.open(path, os.O_WRONLY | os.O_APPEND) for path in self.paths]
        self.history: list[str] = []
        self.done: dict[str, int] = {}

    def close(self) -> None:
        for fd in self.files + self.appending:
            os.close(fd)
        self.mapper.close()

    def run(self, count: int) -> None:
        kinds = [name[5:] for name in dir(self) if name.startswith("draw_") and (self.maps or "map" not in name)]
        often = [*kinds, "read", "read", "write", "write", "look"]
        for number in range(count):
            kind, node = self.dice.choice(often), self.dice.randrange(3)
            self.history.append(f"{number} on {node}: {kind}")
            operation: Callable[[int], str] = getattr(self, f"draw_{kind}")
            try:
                self.history[-1] += f" {operation(node)}"
            except (OSError, EOFError) as err:
                raise AssertionError(f"{err!r} after\n" + "\n".join(self.history[-LAST:])) from err
            self.done[kind] = self.done.get(kind, 0) + 1
        for node in range(3):
            self.check(node, os.pread(self.files[node], FILE_BYTES + 1, 0), 0, FILE_BYTES + 1)

    def check(self, node: int, got: bytes, start: int, length: int) -> None:
        expected = self.model[start : start + length]
        if got == expected:
            return
        first = next((n for n, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected)))
        rows = "\n".join(self.history[-LAST:])
        raise AssertionError(
            f"node {node} read {len(got)} bytes at {start}, expected {len(expected)}; the first wrong one is at {start + first}: "
            f"{got[first : first + 8].hex()} for {expected[first : first + 8].hex()}; before:\n{rows}"
        )

    def piece(self, most: int = FILE_BYTES) -> tuple[int, int]:
        start = self.dice.randrange(most)
        return start, self.dice.randint(1, min(self.dice.choice((10, 5_000, PIECE_BYTES)), most - start))

    def put(self, start: int, data: bytes) -> None:
        if start > len(self.model):
            self.model += bytes(start - len(self.model))
        self.model[start : start + len(data)] = data

    # --- operations -----------------------------------------------------------------------------------------------------------
    def draw_read(self, node: int) -> str:
        start, length = self.piece()
        self.check(node, os.pread(self.files[node], length, start), start, length)
        return f"{start} + {length}"

    def draw_look(self, node: int) -> str:
        size = os.fstat(self.files[node]).st_size if self.dice.random() < 0.5 else os.stat(self.paths[node]).st_size
        assert size == len(self.model), (node, size, len(self.model), self.history[-LAST:])
        return f"{size}"

    def draw_write(self, node: int) -> str:
        start, length = self.piece()
        data = self.dice.randbytes(length)
        assert os.pwrite(self.files[node], data, start) == length
        self.put(start, data)
        return f"{start} + {length}"

    def draw_append(self, node: int) -> str:
        length = self.dice.randint(1, 3_000)
        if len(self.model) + length > FILE_BYTES:
            return "nothing"
        data = self.dice.randbytes(length)
        assert os.write(self.appending[node], data) == length
        self.put(len(self.model), data)
        return f"{length}"

    def draw_truncate(self, node: int) -> str:
        size = self.dice.choice((0, self.dice.randrange(FILE_BYTES), max(0, len(self.model) - self.dice.randrange(9_000))))
        os.ftruncate(self.files[node], size)
        self.model = self.model[:size] + bytes(max(0, size - len(self.model)))
        return f"{size}"

    def draw_fallocate(self, node: int) -> str:
        start, length = self.piece()
        fallocate(self.files[node], 0, start, length)
        self.model += bytes(max(0, start + length - len(self.model)))
        return f"{start} + {length}"

    def draw_punch(self, node: int) -> str:
        start, length = self.piece()
        fallocate(self.files[node], PUNCH_HOLE | KEEP_SIZE, start, length)
        length = max(0, min(length, len(self.model) - start))
        self.model[start : start + length] = bytes(length)
        return f"{start} + {length}"

    def draw_zero(self, node: int) -> str:
        start, length = self.piece()
        fallocate(self.files[node], ZERO_RANGE, start, length)
        self.put(start, bytes(length))
        return f"{start} + {length}"

    def draw_copy(self, node: int) -> str:
        """Within the file, ranges apart."""
        start, length = self.piece(FILE_BYTES // 2)
        target = FILE_BYTES // 2 + self.dice.randrange(FILE_BYTES // 2 - length) if length < FILE_BYTES // 2 else FILE_BYTES // 2
        if start + length > len(self.model) or start + length > FILE_BYTES // 2:
            return "nothing"
        os.fstat(self.files[node])  # copy_file_range(2) ends where the kernel believes the end to be (docs/KNOWN-ISSUES.md)
        copied = 0
        while copied < length:
            part = os.copy_file_range(self.files[node], self.files[node], length - copied, start + copied, target + copied)
            assert part > 0
            copied += part
        self.put(target, bytes(self.model[start : start + length]))
        return f"{start} + {length} to {target}"

    def draw_mapread(self, node: int) -> str:
        if not self.model:
            return "nothing"
        start, length = self.piece(len(self.model))
        got = self.mapper.call("map_read", str(self.paths[node]), len(self.model), start, length)
        self.check(node, got, start, length)
        return f"{start} + {length}"

    def draw_mapwrite(self, node: int) -> str:
        if not self.model:
            return "nothing"
        start, length = self.piece(len(self.model))
        data = self.dice.randbytes(length)
        self.mapper.call("map_write", str(self.paths[node]), len(self.model), start, data)
        self.put(start, data)
        return f"{start} + {length}"


def fsx(places: list[Path], seed: int, figures: list[str], count: int, maps: bool = True) -> None:
    began, it = time.monotonic(), Fsx(places, seed, maps and rig.MAPPINGS)
    try:
        it.run(count)
    finally:
        it.close()
        took = time.monotonic() - began
        figures.append(f"fsx over three nodes, seed {seed}: {sum(it.done.values())} operations in {took:.0f} s, {it.done}")


@everywhere
def test_each_operation_on_another_node(shared_volume: SharedVolume, places: list[Path], seed: int, figures: list[str]) -> None:
    main = shared_volume.mode == rig.MAIN
    fsx(places, seed, figures, OPERATIONS if main else OPERATIONS // 4, maps=main)
