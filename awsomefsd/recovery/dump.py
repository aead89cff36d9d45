"""The metadata as JSON lines, and back: for people, for scripts, and for the day when a format has to be left.

The first line says what the file is.  Then comes a line a row, in the order of the keys: `key` (hex), `volume` and `kind` for the reader,
`row` by field (bytes are base64).  The last line has the number of rows, and the SHA-256 of the lines before.  Rows with secrets
(SECRET_KINDS) are left out and counted; a node that is loaded from a dump makes such things again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import MIB
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.state import keys
from awsomefsd.meta.state.row_codecs import CODEC_OF, SECRET_KINDS
from awsomefsd.recovery.backup import BackupHeader, read_backup

FORMAT = "awsomefs metadata"
FORMAT_VERSION = 1
COMMIT_BYTES = 16 * MIB  # of lines that are loaded in one transaction: the store grows between two
_EVERYTHING = (b"", b"\xff" * 16)


def dump_backup(file: Path, scratch: Path) -> Iterator[str]:
    """Yields the lines of the backup `file`; its store is unpacked in `scratch`, which must not exist.  Raises Corrupt, FormatTooNew."""
    scratch.mkdir(mode=0o700)
    header = read_backup(file, scratch / "data.mdb")
    store = Store.open(scratch, readonly=True)
    try:
        yield from lines(header, store)
    finally:
        store.close()


def lines(header: BackupHeader, store: Store) -> Iterator[str]:
    """Yields the lines of a dump, each with a newline.  Raises Corrupt for a row that cannot be read, FormatTooNew for an unknown kind."""
    digest = hashlib.sha256()
    rows = left_out = 0
    first = {"format": FORMAT, "version": FORMAT_VERSION} | {
        name: getattr(header, name) for name in ("cluster", "node", "site", "index", "term", "time_ns")
    }
    yield _counted(first, digest.update)
    for key, raw in store.scan(*_EVERYTHING):
        _, volume, kind = keys.kind_of(key)
        if kind in SECRET_KINDS:
            left_out += 1
            continue
        if kind not in CODEC_OF:
            raise FormatTooNew(f"a row of kind {kind:#x}, which this build does not know; use a newer awsomefsd")
        row = CODEC_OF[kind].loads(raw)
        values = msgspec.to_builtins(row)
        fields = dict(zip(row.__struct_fields__, values, strict=True)) if isinstance(values, list) else values
        rows += 1
        what = CODEC_OF[kind].what if kind - keys.HISTORY not in keys.VERSIONED else f"kept {CODEC_OF[kind].what}"
        yield _counted({"key": key.hex(), "volume": volume, "kind": what, "row": fields}, digest.update)
    yield json.dumps({"rows": rows, "left_out": left_out, "sha256": digest.hexdigest()}) + "\n"


def _counted(value: dict[str, Any], update: Callable[[bytes], None]) -> str:
    line = json.dumps(value, ensure_ascii=True) + "\n"
    update(line.encode())
    return line


def load(path: Path, directory: Path) -> BackupHeader:
    """Makes the store under `directory` (empty) from a dump; returns the dump's header.  Blocks.

    Raises Corrupt, FormatTooNew; what is in `directory` then is of no use.
    """
    digest = hashlib.sha256()
    rows = uncommitted = 0
    header: BackupHeader | None = None
    store: Store | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                value = _value(path, number, line)
                if "sha256" in value:
                    return _ended(path, value, rows, digest.hexdigest(), header, store, file.read(1))
                digest.update(line)
                if store is None:
                    header = _header(path, value)
                    store = Store.open(directory)
                    store.claim(header.cluster, header.node, bytes(16))
                else:
                    _put(path, number, value, store)
                    rows += 1
                    uncommitted += len(line)
                    if uncommitted >= COMMIT_BYTES:
                        store.commit()
                        uncommitted = 0
        raise Corrupt(f"{path} ends early: its last line is missing")
    finally:
        if store is not None:
            store.close()


def _value(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise Corrupt(f"{path}, line {number} is not valid JSON: {err}") from err
    if not isinstance(value, dict):
        raise Corrupt(f"{path}, line {number} is not a JSON object")
    return value


def _header(path: Path, value: dict[str, Any]) -> BackupHeader:
    if value.get("format") != FORMAT:
        raise Corrupt(f"{path} is not a dump of awsomefsd's metadata")
    if not isinstance(value.get("version"), int) or value["version"] > FORMAT_VERSION:
        raise FormatTooNew(f"{path} has format {value.get('version')}, this build knows {FORMAT_VERSION}; load it with a newer awsomefsd")
    try:
        return msgspec.convert(value | {"store_bytes": 0}, BackupHeader)
    except msgspec.ValidationError as err:
        raise Corrupt(f"{path}, line 1: {err}") from err


def _put(path: Path, number: int, value: dict[str, Any], store: Store) -> None:
    try:
        key = bytes.fromhex(value["key"])
        kind = keys.kind_of(key)[2]
        codec = CODEC_OF[kind]
        fields = value["row"]
        known = codec.type.__struct_fields__
        if set(fields) - set(known):
            raise FormatTooNew(f"{path}, line {number} has fields that this build does not know; load it with a newer awsomefsd")
        row = msgspec.convert([fields[name] for name in known[: len(fields)]], codec.type)  # fields are only ever appended
    except (KeyError, TypeError, ValueError, AttributeError, msgspec.ValidationError, Corrupt) as err:
        raise Corrupt(f"{path}, line {number} is not a row: {type(err).__name__}: {err}") from err
    store.put(key, codec.dumps(row))


def _ended(
    path: Path, value: dict[str, Any], rows: int, digest: str, header: BackupHeader | None, store: Store | None, behind: bytes
) -> BackupHeader:
    if header is None or store is None or value.get("sha256") != digest or value.get("rows") != rows or behind:
        raise Corrupt(f"{path} was changed or truncated: its last line names {value.get('rows')} rows and another checksum")
    store.commit()
    return header
