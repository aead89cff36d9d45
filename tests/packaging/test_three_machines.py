"""Three machines with the Debian package and systemd, from `systemctl enable --now awsomefsd` and `awsomefsd join` on.

Each is a booted container in a network namespace of its own.  A file is written on the mount while daemons of all three are restarted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools import netns
from tests.packaging.container import Container, missing, until

pytestmark = [pytest.mark.soak, pytest.mark.root, pytest.mark.timeout(1_800)]
MOUNT = "/srv/demo"


@pytest.fixture
def machines(tmp_path: Path, debs: list[Path]) -> Iterator[list[Container]]:
    why = missing() or netns.missing()
    if why:
        pytest.skip(why)
    network = netns.Network(tmp_path, 3)
    network.make()
    made: list[Container] = []
    try:
        for number in (1, 2, 3):
            (tmp_path / f"m{number}").mkdir()
            made.append(Container(tmp_path / f"m{number}", netns.NAMES / network.namespace(number)))
            shutil.copy(debs[0], made[-1].root / "root")
        yield made
    finally:
        for machine in made:
            machine.close()
        network.destroy()


def states(machine: Container) -> list[str]:
    code, said = machine.run("awsomefsd", "node", "ls", "-o", "json", check=False)
    return sorted(row["state"] for row in json.loads(said)) if code == 0 else []


def test_three_machines_join(machines: list[Container], debs: list[Path]) -> None:
    for machine in machines:
        machine.run("dpkg", "-i", f"/root/{debs[0].name}")
        machine.run("systemctl", "enable", "--now", "awsomefsd")
        assert machine.run("awsomefsd", "status", check=False)[0] == 3
    first = machines[0]
    first.run("awsomefsd", "init")
    until("the first node", lambda: states(first) == ["active"])
    token = json.loads(first.run("awsomefsd", "token", "create", "--role", "node", "--uses", "2", "-o", "json")[1])["text"]
    for machine in machines[1:]:
        machine.run("awsomefsd", "join", token)
    until("three nodes", lambda: states(machines[2]) == ["active"] * 3)
    first.shell("truncate -s 4G /var/disk.img")
    first.run("awsomefsd", "device", "add", "/var/disk.img")
    first.run("awsomefsd", "volume", "create", "demo")
    first.run("systemctl", "enable", "--now", "awsomefs-mount@demo")
    script = f"for i in $(seq 3000); do echo $i || exit 1; sleep 0.005; done > {MOUNT}/rows"
    writer = subprocess.Popen(first.argv("sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for machine in machines:
        before = machine.pid("awsomefsd")
        machine.run("systemctl", "restart", "awsomefsd")
        assert machine.pid("awsomefsd") not in (0, before)
        until("three nodes again", lambda machine=machine: states(machine) == ["active"] * 3)  # type: ignore[misc]
    said, _ = writer.communicate(timeout=600)
    assert writer.returncode == 0, said
    assert first.shell(f"cat {MOUNT}/rows").split() == [str(number) for number in range(1, 3001)]
    first.run("awsomefsd", "umount", "--all")
