"""Who follows the stream of changes is told what each change was, alone or among records of a batch."""

from __future__ import annotations

import json

from awsomefsd.admin.stream_service import change_message
from awsomefsd.cli.log import _line
from awsomefsd.meta.api import commands as c


def entry(command: c.AnyCommand) -> c.Entry:
    return c.Entry(9, 1, 3, 0, 1, 7, 10**18, 5, 6, 7, 8, [], command)


def test_each_record_of_a_batch_says_which_operation_it_is() -> None:
    said = [c.Link(1, 9, 1, b"b"), c.Unlink(1, 1, b"\xff"), c.SetAttr(1, 9, c.SET_MODE, 0o600)]
    batch = c.Apply(1, 3, 0, 1, [c.DecidedRecord(number, 1, 2, command, 0, [0]) for number, command in enumerate(said, 1)], [], [], 0)
    change = change_message(entry(batch))
    found = [record["command"] for record in json.loads(change.fields)["records"]]
    assert [command["operation"] for command in found] == ["Link", "Unlink", "SetAttr"]
    assert found[0] == {"operation": "Link", "volume": 1, "ino": 9, "parent": 1, "name": "b"}
    assert "records=Link b, Unlink \\xff, SetAttr " in _line(change) + " "
    assert "operation" not in json.loads(change_message(entry(said[0])).fields), "the change itself says it"
