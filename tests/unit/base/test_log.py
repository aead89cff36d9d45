"""Log lines: what one greps for is there, and nothing that is logged can forge another line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from awsomefsd.base import log


@pytest.fixture(autouse=True)
def root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = True


def test_text_line_has_the_request_id_in_hexadecimal() -> None:
    stream = io.StringIO()
    log.setup("worker", "info", "text", stream)
    log.bound(logging.getLogger("x"), mount=0x9F).info("late reply", extra={"unique": 0x1A, "ms": 7})
    line = stream.getvalue()
    assert line.count("\n") == 1
    for field in ("level=info", "component=worker", 'msg="late reply"', "unique=1a", "mount=9f", "ms=7"):
        assert field in line.split("\n")[0], field


def test_json_line_has_the_same_fields() -> None:
    stream = io.StringIO()
    log.setup("daemon", "debug", "json", stream)
    logging.getLogger("x").warning("50%% of %s", "it", extra={"unique": 255})
    fields = json.loads(stream.getvalue())
    assert fields["msg"] == "50% of it" and fields["unique"] == "ff" and fields["component"] == "daemon" and fields["at"].startswith("x:")


def test_values_cannot_break_the_line() -> None:
    stream = io.StringIO()
    log.setup("daemon", stream=stream)
    logging.getLogger("x").info('a"b\nlevel=error', extra={"name_": "x y\x1b[0m"})
    assert stream.getvalue().count("\n") == 1 and "\x1b" not in stream.getvalue() and r"a\"b\nlevel=error" in stream.getvalue()


def test_level_and_exceptions() -> None:
    stream = io.StringIO()
    log.setup("daemon", "error", stream=stream)
    logging.getLogger("x").warning("not shown")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("failed")
    assert "not shown" not in stream.getvalue() and "boom" in stream.getvalue() and stream.getvalue().count("\n") == 1


def test_setup_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    log.setup("a", stream=first)
    log.setup("b", stream=second)
    logging.getLogger("x").info("once")
    assert first.getvalue() == "" and second.getvalue().count("\n") == 1
