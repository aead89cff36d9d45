"""The filesystem of dicts answers as the real one does where the session could tell the difference."""

from __future__ import annotations

from awsomefsd.meta.api.commands import SET_SIZE
from awsomefsd.vfs.api.context import Context, SetAttrIn
from tests.unit.fuse.dict_filesystem import DictFs


def test_a_file_can_be_cut_while_the_answer_of_a_read_is_still_alive() -> None:
    """A reader thread drops the answer only after the kernel has it, so the program's next request may already run in another thread."""
    fs = DictFs()
    ctx = Context(0, 0, 1, 1)
    attr, _ = fs.create(ctx, 1, b"file", 0o600, 0)
    fs.write(ctx, attr.ino, 0, 0, memoryview(b"0123456789"), 0)
    answer = fs.read(ctx, attr.ino, 0, 0, 10)
    assert fs.setattr(ctx, attr.ino, None, SetAttrIn(SET_SIZE, size=4)).size == 4
    assert b"".join(answer) == b"0123456789"
