"""The Debian package on a Debian 12 with systemd: installed, started, upgraded under load, rebooted, removed, purged.

One container for the whole file; the tests go through the life of an installation in their order.  fio writes and verifies throughout.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.container import Container, memory_group, missing, until

pytestmark = [pytest.mark.soak, pytest.mark.root, pytest.mark.timeout(3_600)]

MOUNT = "/srv/demo"
READ_BYTES = 8 << 20  # far more than a program reads to start
FIO = (
    "fio --name=verify --directory={directory} --rw=randrw --bs=4k-64k --size=64m --numjobs=2 --time_based --runtime={seconds}"
    " --verify=crc32c --verify_fatal=1 --fallocate=none --ioengine=psync --fsync=64 --output-format=json --output={output}"
    " --verify_state_save=0"
)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory, debs: list[Path]) -> Iterator[Container]:
    why = missing()
    if why:
        pytest.skip(why)
    made = Container(tmp_path_factory.mktemp("container"))
    try:
        for deb in debs:
            shutil.copy(deb, made.root / "root")
        yield made
    finally:
        made.close()


class Load:
    """fio in the container, in the background."""

    def __init__(self, container: Container, seconds: int) -> None:
        self._container = container
        self._report = container.root / "var/fio.json"
        self._report.unlink(missing_ok=True)
        argv = FIO.format(directory=MOUNT, seconds=seconds, output="/var/fio.json").split()
        self._process = subprocess.Popen(container.argv(*argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        until("fio's files", lambda: container.run("ls", MOUNT)[1].count("verify") == 2)

    def read_bytes(self) -> int:
        """What its processes have read so far; those that are about to end may be missing."""
        said = self._container.shell("cat $(pgrep -x fio | sed 's,.*,/proc/&/io,')", check=False)
        return sum(int(row.split()[1]) for row in said.splitlines() if row.startswith("rchar:"))

    def end(self) -> int:
        """Operations done; asserts that none failed."""
        said, _ = self._process.communicate(timeout=900)
        assert self._process.returncode == 0, said
        text = self._report.read_text()
        jobs = json.loads(text[text.index("{") :])["jobs"]
        assert all(job["error"] == 0 for job in jobs)
        return sum(job[kind]["total_ios"] for job in jobs for kind in ("read", "write"))


def test_install_starts_nothing(container: Container, debs: list[Path]) -> None:
    said = container.run("dpkg", "-i", f"/root/{debs[0].name}")[1]
    assert "nothing was started" in said and "awsomefsd init" in said and "awsomefsd join" in said
    for unit in ("awsomefsd", "awsomefsd-keeper", "awsomefsd-mounts"):
        assert container.run("systemctl", "is-active", unit, check=False)[1].strip() == "inactive"
    assert "awsomefs:" in container.run("getent", "group", "awsomefs")[1]
    found = json.loads(container.run("awsomefsd", "self-check", "-o", "json")[1])
    assert found["ok"], found


def test_first_node(container: Container) -> None:
    container.run("systemctl", "enable", "--now", "awsomefsd")
    for unit in ("awsomefsd", "awsomefsd-keeper", "awsomefsd-mounts"):
        until(unit, lambda unit=unit: container.run("systemctl", "is-active", unit, check=False)[1].strip() == "active")  # type: ignore[misc]
    daemon = container.pid("awsomefsd")
    code, said = container.run("awsomefsd", "status", check=False)
    assert code == 3 and "waiting" in said, "it is ready and waits"
    container.run("awsomefsd", "init")
    until("a node", lambda: "waiting" not in container.run("awsomefsd", "status", check=False)[1])
    assert container.pid("awsomefsd") == daemon, "the waiting daemon went on"
    container.shell("truncate -s 4G /var/disk.img")
    container.run("awsomefsd", "device", "add", "/var/disk.img")
    container.run("awsomefsd", "volume", "create", "demo")
    container.run("systemctl", "enable", "--now", "awsomefs-mount@demo")
    assert "fuse.awsomefs" in container.run("findmnt", MOUNT)[1]
    container.shell(f"echo kept > {MOUNT}/kept; cp /usr/bin/awsomefsd {MOUNT}/program")
    container.shell("printf '[log]\\nlevel = \"debug\"\\n' > /etc/awsomefsd/awsomefsd.toml")


def test_upgrade_under_load(container: Container, debs: list[Path], figures: object) -> None:
    keeper, daemon = container.pid("awsomefsd-keeper"), container.pid("awsomefsd")
    old = container.shell(f"readlink /proc/{keeper}/exe; stat -Lc %i /proc/{keeper}/exe").split()
    load = Load(container, 20)
    until("a load that reads back what it wrote", lambda: load.read_bytes() >= READ_BYTES)
    container.run("dpkg", "-i", f"/root/{debs[1].name}")
    assert container.pid("awsomefsd-keeper") == keeper, "the keeper became the new program and is still the same process"
    new = container.shell(f"readlink /proc/{keeper}/exe; stat -Lc %i /proc/{keeper}/exe").split()
    assert new[0] == "/usr/lib/awsomefsd/awsomefsd" and new[1] != old[1], (old, new)
    assert container.pid("awsomefsd") not in (0, daemon)
    assert load.end() > 0
    assert "debug" in container.shell("cat /etc/awsomefsd/awsomefsd.toml"), "what was changed by hand is kept"
    assert container.shell(f"cat {MOUNT}/kept") == "kept\n"


def test_downgrade_to_a_build_of_the_same_state(container: Container, debs: list[Path]) -> None:
    keeper = container.pid("awsomefsd-keeper")
    load = Load(container, 12)
    said = container.run("dpkg", "-i", f"/root/{debs[0].name}")[1]
    assert "downgrading" in said and container.pid("awsomefsd-keeper") == keeper
    assert load.end() > 0
    assert container.shell(f"cat {MOUNT}/kept") == "kept\n"


def test_deaths_under_systemd(container: Container) -> None:
    """SIGSEGV, SIGKILL and a daemon that no longer turns: each is followed by another one, and fio sees a pause at most."""
    container.shell("mkdir -p /run/systemd/system/awsomefsd.service.d")
    container.shell("printf '[Service]\\nWatchdogSec=5\\n' > /run/systemd/system/awsomefsd.service.d/test.conf; systemctl daemon-reload")
    container.run("systemctl", "restart", "awsomefsd")
    load = Load(container, 45)
    for unit, number in (("awsomefsd", "SEGV"), ("awsomefsd", "KILL"), ("awsomefsd-keeper", "KILL"), ("awsomefsd", "STOP")):
        before = container.pid(unit)
        container.run("kill", f"-{number}", str(before))
        until(f"another {unit} after SIG{number}", lambda unit=unit, before=before: container.pid(unit) not in (0, before))  # type: ignore[misc]
        until("a node that answers", lambda: container.run("awsomefsd", "status", check=False)[0] in (0, 3))
    assert load.end() > 0
    assert "watchdog" in container.run("journalctl", "-u", "awsomefsd", "--no-pager")[1].lower()


def test_deaths_for_want_of_memory(container: Container) -> None:
    """The kernel kills the daemon, then a worker, by the limit of a control group: others follow, keeper and mounts go on, fio pauses.

    The limit is set from outside.  What `MemoryMax=` of a unit leads to is the same kill, but the control groups of version 1 that the
    container may run under give systemd no memory controller there.
    """
    if memory_group() is None:
        pytest.skip("no control groups with a limit of memory can be made here")
    keeper = container.pid("awsomefsd-keeper")
    load = Load(container, 30)
    before = container.pid("awsomefsd")
    container.starve(before, lambda: container.run("awsomefsd", "status", check=False))
    until("another daemon", lambda: container.pid("awsomefsd") not in (0, before))
    until("a node that answers", lambda: container.run("awsomefsd", "status", check=False)[0] == 0)
    worker = workers(container)[0]
    container.starve(worker, lambda: container.shell(f"head -c 4000000 /dev/urandom > {MOUNT}/more; sync {MOUNT}/more"))
    until("another worker", lambda: any(pid != worker for pid in workers(container)))
    assert load.end() > 0
    assert container.pid("awsomefsd-keeper") == keeper, "the keeper is the same process"
    assert container.shell(f"cat {MOUNT}/kept") == "kept\n"
    assert container.run("systemctl", "is-active", "awsomefsd-keeper")[1].strip() == "active"


def workers(container: Container) -> list[int]:
    return list(map(int, container.shell("pgrep -f '^/usr/lib/awsomefsd/awsomefsd worker' || true").split()))


def test_restart_of_the_machine(container: Container) -> None:
    """Mounts are flushed and unmounted before daemon and keeper end; what was written without fsync is there."""
    container.shell(f"head -c 3000000 /dev/urandom > {MOUNT}/late; sha256sum {MOUNT}/late > /var/late.sum")
    container.power_off()
    container.boot()
    until("the mount", lambda: "fuse.awsomefs" in container.run("findmnt", MOUNT, check=False)[1])
    assert "OK" in container.run("sha256sum", "-c", "/var/late.sum")[1]
    assert "clean" in container.shell("systemctl stop awsomefsd; awsomefsd fsck; systemctl start awsomefsd")


def test_removal(container: Container) -> None:
    code, said = container.run("dpkg", "-r", "awsomefsd", check=False)
    assert code != 0 and f"demo {MOUNT}" in said and "umount --all" in said
    assert container.shell(f"cat {MOUNT}/kept") == "kept\n", "nothing happened to the mount"
    container.run("awsomefsd", "umount", "--all")
    assert "kept are the state" in container.run("dpkg", "-r", "awsomefsd")[1]
    assert not container.shell("pgrep -a awsomefsd || true").strip()
    assert "debug" in container.shell("cat /etc/awsomefsd/awsomefsd.toml")
    said = container.run("dpkg", "--purge", "awsomefsd")[1]
    assert "/var/lib/awsomefsd" in said
    assert container.shell("test -e /etc/awsomefsd/awsomefsd.toml || echo gone; ls /var/lib/awsomefsd/node.json").split()[0] == "gone"
    assert container.shell("ls /usr/lib/awsomefsd 2>/dev/null || echo gone").strip() == "gone"
