"""The fence around versioned rows finds every way past the door, and a line of its lists that is out of date."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildtools import versioned_rows


def test_nobody_goes_past_the_door() -> None:
    assert versioned_rows.breaches() == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from awsomefsd.meta.state import keys\ndef f(s):\n    s.txn.get(keys.inode(1, 2))\n", [("f", "keys.inode")]),
        ("from awsomefsd.meta.state import keys as k\ndef f(s):\n    s.txn.get(k.dentry(1, 2, b'a'))\n", [("f", "k.dentry")]),
        ("import awsomefsd.meta.state.keys\nX = awsomefsd.meta.state.keys.EXTENT\n", [("<module>", "awsomefsd.meta.state.keys.EXTENT")]),
        ("from awsomefsd.meta.state.keys import extent as at\n", [("<module>", "extent")]),
        ("from awsomefsd.meta.state.rows import *\n", [("<module>", "*")]),
        ("from awsomefsd.meta.state import rows\nclass A:\n    def f(self):\n        return rows.XATTR\n", [("A.f", "rows.XATTR")]),
        ("def f():\n    from awsomefsd.meta.state import rows\n    return rows.INLINE\n", [("f", "rows.INLINE")]),
        ("from awsomefsd.meta.state import keys\ndef f(name):\n    return getattr(keys, name)\n", [("f", "getattr(keys, name)")]),
        ("from awsomefsd.meta.state.row_codecs import CODEC_OF\n", [("<module>", "CODEC_OF")]),
        ("from awsomefsd.meta.state import keys\ndef f(s):\n    return s.keys_in(keys.volume_range(1))\n", [("f", "keys.volume_range")]),
        ("from awsomefsd.meta.state import keys, rows\nX = keys.session(1), rows.SESSION, rows.InodeRow\n", []),
        ("from elsewhere import keys\nX = keys.inode(1, 2)\n", []),
    ],
)
def test_ways_to_a_versioned_row(source: str, found: list[tuple[str, str]]) -> None:
    assert list(versioned_rows.accesses(source)) == found


def test_a_new_place_and_a_line_that_is_out_of_date_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versioned_rows, "ROOMS", {"check/": "it looks at all rows"})
    monkeypatch.setattr(versioned_rows, "NAMES", frozenset({"old.py:gone", "old.py:reads"}))
    for name in ("meta/state/history.py", "check/tree.py", "new.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from awsomefsd.meta.state import keys\ndef reads(s):\n    return s.txn.get(keys.inode(1, 2)), keys.EXTENT\n")
    (tmp_path / "old.py").write_text((tmp_path / "new.py").read_text())
    assert versioned_rows.breaches(tmp_path) == [
        "new.py:reads uses keys.inode: versioned rows are read and changed through meta/state/history.py",
        "old.py:gone does not touch versioned rows any more: take it out of the list",
    ]
