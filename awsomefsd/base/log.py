"""Structured logs of all processes: one line a record, `key=value` or JSON, on stderr.

A request is followed by two fields: `mount` (the mount's id) and `unique` (the kernel's number of the request), both in hexadecimal, the
same in keeper, worker and daemon.  Code that logs passes them (and any other field) with ``extra={"mount": m, "unique": u}``, or binds
them once with `bound`.  `mount=` and `unique=` are exactly what one greps for.  Standard library only: worker and keeper import this.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
HEX_FIELDS = frozenset({"mount", "unique"})
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:+,@%[]")


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1_000_000) % 1_000_000:06d}Z"


def _fields(record: logging.LogRecord, component: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "ts": _stamp(record.created),
        "level": record.levelname.lower(),
        "component": component,
        "pid": record.process,
        "msg": record.getMessage(),
    }
    for key, value in record.__dict__.items():
        if key not in _STANDARD and not key.startswith("_"):
            fields[key] = f"{value:x}" if key in HEX_FIELDS and isinstance(value, int) else value
    if record.levelno >= logging.WARNING:
        fields["at"] = f"{record.name}:{record.lineno}"
    if record.exc_info:
        fields["error"] = logging.Formatter().formatException(record.exc_info)
    return fields


def printable(text: object) -> str:
    """Returns a text as UTF-8 on one line, without what a terminal takes for commands: others chose the names of files and processes."""
    return "".join(char if char.isprintable() else f"\\x{_byte(char):02x}" for char in str(text))


def _byte(char: str) -> int:
    code = ord(char)
    return code & 0xFF if 0xDC80 <= code <= 0xDCFF else code  # os.fsdecode's for a byte that is no UTF-8


def _quoted(value: Any) -> str:
    text = str(value)
    if text and _PLAIN.issuperset(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{printable(escaped)}"'


class TextFormatter(logging.Formatter):
    """Writes a record as one line of `key=value`: ts=… level=info component=worker pid=7 msg="…" unique=1a mount=9f"""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record, self._component).items())


class JsonFormatter(logging.Formatter):
    """Writes the same fields as one JSON object a line."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        import json  # only a process with JSON lines pays for it

        return json.dumps(_fields(record, self._component), default=str)


def setup(component: str, level: str = "info", form: str = "text", stream: TextIO | None = None) -> None:
    """Sets up the root logger of this process.  Replaces what was set up before, so it may be called again (config reloaded, tests)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(component) if form == "json" else TextFormatter(component))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.raiseExceptions = False  # a full disk under the log must not become an error of a request


class Bound(logging.LoggerAdapter):  # type: ignore[type-arg]
    """A logger that adds the same fields to every record; fields of a single call replace them."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def bound(logger: logging.Logger, **fields: Any) -> Bound:
    """Returns a logger whose lines all carry these fields: ``bound(logging.getLogger(__name__), mount=id)`` gives mount=<hex>."""
    return Bound(logger, fields)
