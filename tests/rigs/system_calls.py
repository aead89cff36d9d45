"""Counts of the system calls of running processes, by strace.

Counts hold on a busy machine as on an idle one, so they are what tests of speed assert.  Times do not: strace makes each call many times
as slow.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WAIT_S = 60.0
_ROW = re.compile(r"^\s*(\d+)\s+(\w+)$")

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="counts of system calls need strace")


_CALL = re.compile(r"^(\d+)\s+(?:\d\S*\s+)?(?:<\.\.\. )?(\w+)(\(| resumed>)(.*)$")


@contextmanager
def _strace(command: list[str]) -> Iterator[None]:
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            line = strace.stderr.readline()
            assert "attached" in line, line
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.communicate(timeout=WAIT_S)


@contextmanager
def traced(pid: int, directory: Path, names: str) -> Iterator[list[tuple[int, str]]]:
    """The calls of these names (comma between them) of all threads of a process, as (thread, name) in the order in which they ended."""
    calls: list[tuple[int, str]] = []
    table = directory / f"trace-{pid}"
    with _strace(["strace", "-f", "-e", f"trace={names}", "-o", str(table), "-p", str(pid)]):
        yield calls
    for row in table.read_text().splitlines():
        found = _CALL.match(row)
        if found is not None and "<unfinished" not in row:
            calls.append((int(found[1]), found[2]))


def split_at(name: str, calls: list[tuple[int, str]]) -> list[list[str]]:
    """For each call of this name the names that the same thread called after it, before its next one."""
    parts: list[list[str]] = []
    of_thread: dict[int, list[str]] = {}
    for thread, called in calls:
        if called == name:
            of_thread[thread] = []
            parts.append(of_thread[thread])
        elif thread in of_thread:
            of_thread[thread].append(called)
    return parts


@contextmanager
def counted(pid: int, directory: Path) -> Iterator[Counter[str]]:
    """Counts the calls of all threads of a process, by name, from the moment the block begins; filled when the block has ended."""
    counts: Counter[str] = Counter()
    table = directory / f"calls-{pid}"
    command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(table), "-p", str(pid)]
    with _strace(command):
        yield counts
    for row in table.read_text().splitlines():
        found = _ROW.match(row)
        if found is not None and found[2] != "total":
            counts[found[2]] += int(found[1])
