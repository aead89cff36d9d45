"""The check of journal files while the journal is in use, for scrub.  It shares nothing with the thread that writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from awsomefsd.base.errors import Corrupt
from awsomefsd.meta.log import format as form

_SUFFIX = ".journal"


def journal_files(directory: Path) -> list[Path]:
    """Returns the files of a journal, oldest first.  Raises OSError."""
    return sorted(path for path in directory.iterdir() if path.name.endswith(_SUFFIX))


def faults_of(files: list[Path]) -> Iterator[tuple[Path, int, str]]:
    """Yields (file, its bytes, why it is damaged or "") for each of `files`, the newest last.  Blocks for the disk; raises OSError.

    A file that was dropped meanwhile is left out.  The end of the newest one is being written: what is bad there counts only where a later
    record proves that it had been durable, as at a recovery.  Raises FormatTooNew for a file of a later build.
    """
    for path in files:
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue
        try:
            why = _fault(raw, str(path), newest=path == files[-1])
        except Corrupt as err:
            why = str(err)
        yield path, len(raw), why


def _fault(raw: bytes, name: str, *, newest: bool) -> str:
    _, seed = form.unpack_header(raw, name, writing=False)
    position = form.HEADER_BYTES
    while (record := form.unpack_record(raw, position, seed, position)) is not None:
        position = record.end
    if not form.without_zeros(raw, position):
        return ""
    if not newest:
        return f"bad record at {position}, and a later file follows"
    proof = form.proof_of_damage(raw, position, seed)
    return "" if proof is None else f"bad record at {position}, which was durable when the record at {proof} was written"
