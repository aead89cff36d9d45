"""Transactions into a database in DIR until SIGTERM; then the database must be whole and hold every one that was acknowledged.

Prints one line: {"committed": N, "slow": [[began, seconds], ...]} and exits 0, or fails with what was wrong.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import time

SLOW_S = 0.05


def main(directory: str) -> None:
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    base = sqlite3.connect(f"{directory}/base.sqlite", isolation_level=None, timeout=60)
    base.execute("PRAGMA synchronous=FULL")
    base.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT)")
    committed, slow = 0, []
    print("begun", flush=True)
    while not stop:
        began = time.monotonic()
        base.execute("BEGIN IMMEDIATE")
        base.execute("INSERT INTO rows VALUES (?, ?)", (committed, "x" * (committed % 900)))
        base.execute("COMMIT")
        committed += 1
        took = time.monotonic() - began
        if took > SLOW_S:
            slow.append((began, took))
        time.sleep(0.01)
    base.close()
    again = sqlite3.connect(f"{directory}/base.sqlite")
    assert again.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = again.execute("SELECT number, length(text) FROM rows ORDER BY number").fetchall()
    assert rows == [(number, number % 900) for number in range(committed)], (len(rows), committed)
    print(json.dumps({"committed": committed, "slow": slow}), flush=True)


main(sys.argv[1])
