"""What a mount decided and the cluster never will have is a list that tells each byte of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

from awsomefsd.io.file.op_log import OpRecord
from awsomefsd.meta.api import commands as c
from awsomefsd.vfs.session.names_aside import write_names


def stored(sequence: int, command: c.DelegatedCommand, *leads_to: int, ino: int = 0) -> OpRecord:
    said = c.DecidedRecord(0, 1, 5, command, 0, list(leads_to), 0, ino)
    record: OpRecord = mock.Mock(sequence=sequence, damaged=False, data=c.record_encode(said))
    return record


def test_each_line_tells_its_place_in_the_order_and_the_names_byte_by_byte(tmp_path: Path) -> None:
    odd = rb"a\xff" + b'\xff\n"\xc3\xa4'
    records = [
        stored(7, c.SetAttr(1, 9, c.SET_MODE, 0o600, log=3, sequence=2)),
        stored(8, c.Rename(1, 1, odd, 1, b"b"), 9, 0),
        stored(9, c.SetXattr(1, 9, b"user.a", bytes(range(256)))),
        stored(10, c.Create(1, 1, b"d", 0o040755, 0, 0), 0, ino=12),
        stored(11, c.Create(1, 12, b"f", 0o100644, 0, 0), 0, ino=13),
    ]
    where = write_names(str(tmp_path), 5, records)
    lines = [json.loads(line) for line in Path(where, "records").read_bytes().splitlines()]
    assert [(line["sequence"], line["operation"], line["made"]) for line in lines] == [
        (7, "SetAttr", 0), (8, "Rename", 0), (9, "SetXattr", 0), (10, "Create", 12), (11, "Create", 13),
    ]  # fmt: skip
    assert lines[4]["parent"] == 12, "in the directory that the line before made"
    assert os.fsencode(lines[1]["name"]) == odd and os.fsencode(lines[2]["value"]) == bytes(range(256))
