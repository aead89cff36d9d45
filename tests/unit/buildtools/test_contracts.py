"""Each import contract of pyproject.toml is seen to fail on a violation that is planted in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from buildtools.say import CHECKOUT

TOOL = Path(sys.executable).with_name("lint-imports")

# number of the contract: (a module, what it must not import).  Each is one line that somebody might really write.
PLANTED = {
    "1.": ("awsomefsd.io.device.device", "awsomefsd.vfs.vfs"),
    "2.": ("awsomefsd.meta.voter.voter", "awsomefsd.meta.server.leader"),
    "3a.": ("awsomefsd.vfs.state.names", "awsomefsd.vfs.ops.namespace"),
    "3b.": ("awsomefsd.io.device.superblock", "awsomefsd.io.segment.frame"),
    "3c.": ("awsomefsd.cluster.pki.ca", "awsomefsd.cluster.control.client"),
    "3d.": ("awsomefsd.node.pod.host_program", "awsomefsd.node.mounts"),
    "4.": ("awsomefsd.meta.machine.locks", "time"),
    "5.": ("awsomefsd.meta.server.leader", "awsomefsd.meta.machine.locks"),
    "6.": ("awsomefsd.vfs.ops.namespace", "awsomefsd.fuse.abi"),
    "7.": ("awsomefsd.fuse.session", "trio"),
    "8.": ("awsomefsd.keeper.loop", "awsomefsd.meta.api.bounds"),
    "9.": ("awsomefsd.recovery.fsck", "lmdb"),
    "10.": ("awsomefsd.node.catalog", "grpc"),
    "11.": ("awsomefsd.tier.store", "obstore"),
}


def contracts() -> list[str]:
    return [one["name"] for one in tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy with all violations, and with a package that has no floor."""
    place = tmp_path_factory.mktemp("planted")
    shutil.copytree(CHECKOUT / "awsomefsd", place / "awsomefsd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", place)
    for module, imported in PLANTED.values():
        with (place / (module.replace(".", "/") + ".py")).open("a") as file:
            file.write(f"\nimport {imported} as planted\n")
    (place / "awsomefsd" / "attic").mkdir()
    (place / "awsomefsd" / "attic" / "__init__.py").write_text("")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "300"}
    done = subprocess.run([TOOL, "--no-cache"], cwd=place, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_every_contract_has_a_violation() -> None:
    assert [name.split()[0] for name in contracts()] == list(PLANTED)


@pytest.mark.parametrize("number", PLANTED)
def test_a_violation_is_found(report: str, number: str) -> None:
    [name] = [one for one in contracts() if one.split()[0] == number]
    assert re.search(rf"^{re.escape(name)} BROKEN", report, re.M), report
    module, imported = PLANTED[number]
    section = report.partition("Broken contracts")[2].partition(f"\n{name}\n")[2]
    section = re.split(r"\n-{3,}\n\n.*\n-{3,}\n", section, maxsplit=1)[0]
    assert f"{module} -> {imported} (l." in " ".join(section.split()), section


def test_a_package_without_a_floor_is_found(report: str) -> None:
    assert "attic" in report.partition("Broken contracts")[2]
