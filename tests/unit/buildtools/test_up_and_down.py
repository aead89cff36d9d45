"""What `build.py up` and `down` refuse, and that a disk which several nodes have open is detached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from buildtools import cluster as clusters
from buildtools import commands, loops, nodes, procs
from buildtools.cluster import Cluster
from buildtools.say import CHECKOUT, BuildError


@pytest.mark.parametrize("words", ["64M", "1G", "abc", "0", "-1G", ""])
def test_a_size_that_cannot_be_is_refused_before_anything_is_done(tmp_path: Path, words: str) -> None:
    with pytest.raises(BuildError, match=r"at least 2\.0 GiB|is not understood"):
        commands.up(tmp_path / "demo", words)
    assert not (tmp_path / "demo").exists()


def test_other_peoples_directories_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("x")
    for place, what in ((tmp_path, "not empty"), (tmp_path / "theirs", "no directory")):
        with pytest.raises(BuildError, match=what):
            commands.up(place, "4G")
    assert os.listdir(tmp_path) == ["theirs"]


HOLDER = """
import os, sys
from pathlib import Path
from buildtools import commands
program = "import sys; print('up', flush=True); sys.stdin.read()"
commands.prepare.check_host = lambda: os.execv(sys.executable, [sys.executable, "-c", program])
commands.up(Path(sys.argv[1]), "4G")
"""


def test_a_second_up_or_a_down_in_one_directory_is_refused_and_names_the_first(tmp_path: Path) -> None:
    """They would kill each other's nodes.  The first one is another program by then: `up` becomes the demonstration."""
    place = tmp_path / "demo"
    environ = dict(os.environ) | {"PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", HOLDER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as first:
        try:
            assert first.stdout is not None and b"up\n" in iter(first.stdout.readline, b"")
            with pytest.raises(BuildError, match=rf"works in {place} \(process {first.pid}\).*kill -INT {first.pid}"):
                commands.up(place, "4G")
            (place / clusters.MARKER).touch()
            with pytest.raises(BuildError, match=f"process {first.pid}"):
                commands.down(place)
            assert place.exists()
        finally:
            first.kill()
    assert commands.down(place) == 0 and not place.exists(), "what a killed one has left refuses nothing"


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("somebody's")
    place = tmp_path / "place"
    place.mkdir()
    (place / clusters.LOCK).symlink_to(kept)
    with pytest.raises(BuildError, match="cannot be opened"):
        Cluster(place, 1).take()
    assert kept.read_text() == "somebody's"


def test_every_nodes_mount_is_named_where_they_share_a_disk(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 3, use_loop=False, size_bytes=1 << 20)
    for node in cluster.nodes:
        node.directory.mkdir()
    cluster.share()
    rows = dict(row.split("=", 1) for row in cluster.write_env().read_text().splitlines())
    assert [rows[f"MOUNT{number}"] for number in (1, 2, 3)] == [str(tmp_path / f"n{number}" / "mnt") for number in (1, 2, 3)]
    assert {node.settings["AWSOMEFSD_DEVICES_SCAN"] for node in cluster.nodes} == {str(tmp_path / "n1" / "device.img")}


@pytest.mark.skipif(os.geteuid() != 0 or not loops.usable(), reason="needs root and a loop driver")
def test_a_disk_that_other_nodes_have_open_is_detached(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 2, size_bytes=1 << 20)
    (tmp_path / clusters.MARKER).touch()
    for node in cluster.nodes:
        node.directory.mkdir()
        (node.directory / nodes.MARKER).touch()
    first, second = cluster.nodes
    try:
        device = os.readlink(first.attach())
    except BuildError as err:
        pytest.skip(str(err))
    program = "import sys; file = open(sys.argv[1], 'rb'); print('open', flush=True); sys.stdin.read()"
    env = dict(os.environ) | {procs.MARK: str(second.directory)}
    with subprocess.Popen([sys.executable, "-c", program, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
            cluster.destroy()
            assert not loops.of_file(first.image) and holder.wait(60) == -9 and not tmp_path.exists()
        finally:
            holder.kill()
            loops.detach(device)
