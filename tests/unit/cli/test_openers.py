"""Who has a file open: whatever the processes of this machine are called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from awsomefsd.cli.looking.info import openers

NAMED = """
import ctypes, sys
held = open(sys.argv[1])
ctypes.CDLL(None).prctl(15, b"\\xffname\\xc3", 0, 0, 0)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_program_whose_name_is_no_text_ends_no_command(tmp_path: Path) -> None:
    """Every user may give his process any bytes for a name, and open a file that he may read."""
    (tmp_path / "f").write_bytes(b"x")
    process = subprocess.Popen([sys.executable, "-c", NAMED, str(tmp_path / "f")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        found = [one["program"] for one in openers(os.stat(tmp_path / "f")) if one["pid"] == process.pid]
        assert len(found) == 1 and "name" in found[0]
    finally:
        process.communicate()
