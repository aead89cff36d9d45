"""Every registered failpoint is in the code, every one in the code is registered; what the environment's text means."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from awsomefsd.base import failpoints

SOURCE = Path(failpoints.__file__).parents[1]


@pytest.fixture(autouse=True)
def off():
    yield
    failpoints.configure("", "")


def test_registry_and_code_name_the_same():
    text = "".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "failpoints.py")
    found = re.findall(r"\bhit\(\"([a-z.]+)\"\)", text)
    assert sorted(found) == sorted(failpoints.POINTS), "each once"
    assert len(found) >= 40


def test_an_error_at_the_second_hit_only():
    failpoints.configure("fsync.before=error:ENOSPC@2", "")
    failpoints.hit("fsync.before")
    with pytest.raises(OSError, match=r"fsync\.before") as caught:
        failpoints.hit("fsync.before")
    assert caught.value.errno == errno.ENOSPC
    failpoints.hit("fsync.before")
    failpoints.hit("fsync.after")


@pytest.mark.parametrize("text", ["fsync.befor=kill", "fsync.before=explode", "fsync.before"])
def test_what_is_no_failpoint_is_refused(text):
    with pytest.raises(ValueError, match="does not name a failpoint"):
        failpoints.configure(text, "")


def test_hits_are_counted_over_processes_and_an_armed_point_kills_once(tmp_path):
    control = failpoints.FailpointControl(tmp_path / "points")
    control.arm("fsync.after", 2)
    code = "from awsomefsd.base.failpoints import hit\nfor _ in range(3): hit('fsync.after')"
    env = {"AWSOMEFSD_FAILPOINTS_FILE": str(control.path), "PYTHONPATH": str(SOURCE.parent)}
    ends = [subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode for _ in range(2)]
    assert ends == [-9, 0]
    assert (control.hits("fsync.after"), control.fired("fsync.after")) == (5, 1)
    assert control.hits("fsync.before") == 0
    control.close()
