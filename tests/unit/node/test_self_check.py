"""awsomefsd self-check: what it finds on this host, and that it finds what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from awsomefsd.base import program
from awsomefsd.node import self_check


def _run(*flags: str) -> tuple[int, dict[str, tuple[str, str]]]:
    argv = [sys.executable, *flags, "-m", "awsomefsd", "self-check", "-o", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, env=program.environment(), timeout=120, check=False)
    found = json.loads(done.stdout)
    assert found["ok"] == (done.returncode == 0)
    return done.returncode, {row["name"]: (row["state"], row["detail"]) for row in found["findings"]}


def test_this_host_serves() -> None:
    code, found = _run()
    bad = {name: detail for name, (state, detail) in found.items() if state == self_check.BAD}
    assert set(bad) <= {"FUSE"} and code == bool(bad), bad
    assert found["asserts"] == ("ok", "on") and len([name for name in found if "(" in name]) >= len(self_check._LIBRARIES)


def test_without_asserts_it_is_bad() -> None:
    code, found = _run("-O")
    assert code == 1 and found["asserts"][0] == "bad"


def test_one_broken_library_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(self_check._LIBRARIES, "checksums (crc32c)", ("zlib", lambda library: library.no_such_function()))
    found = {finding.name: finding for finding in self_check.run()}
    assert found["checksums (crc32c)"].state == self_check.BAD and "no_such_function" in found["checksums (crc32c)"].detail
    assert found["store (LMDB)"].state == self_check.OK


@pytest.mark.root
def test_the_kernel_says_its_level() -> None:
    if os.geteuid() != 0 or not os.path.exists(self_check.DEV_FUSE):
        pytest.skip("needs root and /dev/fuse")
    before = open("/proc/self/mountinfo").read().count("awsomefsd-self-check-")
    offer = self_check.kernel_offer()
    assert (offer.major, offer.minor) >= (7, 34) and offer.max_readahead > 0
    assert open("/proc/self/mountinfo").read().count("awsomefsd-self-check-") == before
