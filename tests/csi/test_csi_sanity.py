"""csi-sanity, the specification's own tests, against a real daemon with a real device; in mount and in block mode."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from buildtools.nodes import CHECKOUT
from tests.csi.rig import Player
from tests.rigs.external_programs import need

VERSION = "v5.5.0"
pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def program() -> Path:
    place = CHECKOUT / ".venv" / "tools" / f"csi-sanity-{VERSION}"
    if place.exists():
        return place
    need("go")
    words = ["go", "install", f"github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@{VERSION}"]
    room = place.parent / "go-bin"
    room.mkdir(parents=True, exist_ok=True)
    go = shutil.which("go")
    environment = {"PATH": f"{Path(str(go)).parent}:/usr/bin:/bin", "HOME": str(Path.home()), "GOBIN": str(room)}
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=280, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{' '.join(words)}: no end within 280 s")
    if done.returncode:
        pytest.skip(f"{' '.join(words)} failed: {done.stderr.strip()[-300:]}")
    (room / "csi-sanity").rename(place)
    return place


@pytest.mark.parametrize("kind", ["mount", "block"])
def test_csi_sanity(kind: str, player: Player, program: Path, figures: list[str]) -> None:
    places = [f"--csi.mountdir={player.kubelet}/sanity-target", f"--csi.stagingdir={player.kubelet}/sanity-staging"]
    words = [str(program), f"--csi.endpoint=unix://{player.socket}", *places, f"--csi.testvolumeaccesstype={kind}", "--ginkgo.no-color"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=800, check=False, cwd=player.node.directory)
    assert done.returncode == 0, done.stdout[-12_000:]
    told = re.search(r"(\d+) Passed \| 0 Failed \| (\d+) Pending \| (\d+) Skipped", done.stdout)
    assert told and int(told[1]) >= 57, done.stdout[-2000:]
    why = "of capabilities that are not declared: snapshots, clones, groups"
    figures.append(f"csi-sanity {VERSION}, {kind}: {told[1]} specs passed, {int(told[2]) + int(told[3])} skipped ({why})")
    player.await_nothing_left()
