"""fio with verification, and Python's own tests of the system calls, on a mount."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.external_programs import killing_workers, need, run

pytestmark = pytest.mark.root
ENGINES = {
    "buffered": ("--ioengine=psync",),
    "direct": ("--ioengine=libaio", "--iodepth=16", "--direct=1"),
    "mmap": ("--ioengine=mmap",),
}
PYTHON_TESTS = ("test_os", "test_shutil", "test_mmap", "test_fcntl")
OWN_TESTS_S = 600  # of one of them, on a machine that others keep busy: test_os took 77 s at a load of 10, over 200 s at one of 24


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


@pytest.mark.parametrize("engine", ENGINES)
def test_fio_reads_what_it_wrote(node, seed, tmp_path, engine):
    need("fio")
    words = ("--rw=randrw", "--bsrange=4k-64k", "--bs_unaligned=0", "--size=16m", "--numjobs=2", "--group_reporting", "--fsync=64")
    verify = ("--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_backlog=128", f"--randseed={seed + 1}")
    with killing_workers(node):
        run("fio", f"--name={engine}", f"--directory={node.mountpoint}", *words, *verify, *ENGINES[engine], cwd=tmp_path)


def outcome(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    argv = [sys.executable, "-m", "test", "--tempdir", str(folder), name]
    env |= {"TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    null = subprocess.DEVNULL
    return subprocess.run(argv, capture_output=True, text=True, env=env, cwd=folder, timeout=OWN_TESTS_S, check=False, stdin=null)


@pytest.mark.timeout(OWN_TESTS_S * 2 + 120)
@pytest.mark.parametrize("name", PYTHON_TESTS)
def test_pythons_own_tests(node, tmp_path, name):
    """What fails in a local directory too is this machine's affair: it is skipped, and the end of the run names it."""
    if importlib.util.find_spec(f"test.{name}") is None:
        pytest.skip("this interpreter came without its tests (Debian: libpython3-testsuite)")
    done = outcome(name, node.mountpoint / name)
    if done.returncode == 0:
        return
    if outcome(name, tmp_path / name).returncode:
        pytest.skip(f"test.{name} fails in a local directory too")
    pytest.fail(f"{done.stdout[-8000:]}\n{done.stderr[-3000:]}")
