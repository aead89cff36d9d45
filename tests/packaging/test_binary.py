"""The compiled program, where there is one (AWSOMEFSD_BINARY, or dist/ of these sources): what it is, and a node of it under kills."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from buildtools import binary, bom, elf
from buildtools.nodes import Node
from tests.packaging.container import WITHOUT_OTHERS


def test_runs_on_the_promised_glibc_with_nothing_else(program: Path) -> None:
    floor, _ = elf.glibc_floor(program.parent)
    assert (2, 17) < floor <= binary.FLOOR
    foreign = {name for name in elf.foreign_libraries(program.parent) if "ld-linux" not in name}
    assert foreign <= binary.OF_THE_MACHINE


def test_checks_itself_without_anything_around(program: Path) -> None:
    done = subprocess.run([program, "self-check", "-o", "json"], capture_output=True, text=True, env={}, timeout=120, check=False)
    found = {row["name"]: row["state"] for row in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0 and found["asserts"] == "ok" and found["adapter for libfuse (pyfuse3)"] == "ok", found


def test_what_was_left_out_is_not_missed(program: Path, tmp_path: Path) -> None:
    """Neither libyaml nor an encoding of East Asia is in it; a configuration in YAML is read all the same."""
    assert not [path.name for pattern in ("_yaml*", "_codecs_*", "roots.pem") for path in program.parent.rglob(pattern)]
    file = tmp_path / "a.yaml"
    file.write_text("log:\n  level: debug\n")
    argv = [program, "--config", file, "config", "show", "-o", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and '"debug"' in done.stdout, done


def test_runs_in_a_root_without_locales(program: Path, tmp_path: Path) -> None:
    """Nothing but glibc's own libraries and /proc, by which the loader finds the program's own: no Python, no locale."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    root = tmp_path / "root"
    shutil.copytree(program.parent, root / "awsomefsd")
    for name in sorted(binary.OF_THE_MACHINE | {"ld-linux-x86-64.so.2"}):
        for folder in ("/lib64", "/lib/x86_64-linux-gnu"):
            source = Path(folder, name)
            if source.exists():
                target = root / folder.lstrip("/") / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    for name in ("proc", "tmp"):
        (root / name).mkdir()
    script = 'mount -t proc proc "$1/proc" && exec chroot "$1" /awsomefsd/awsomefsd --help'  # the mount ends with its namespace
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    argv = ["unshare", "--mount", "sh", "-c", WITHOUT_OTHERS + script, "sh", str(root)]
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0 and "Usage: awsomefsd" in done.stdout, done


def test_every_part_has_a_licence(program: Path) -> None:
    parts = json.loads((program.parent / bom.SBOM).read_text())["components"]
    kept = {path.name for path in (program.parent / bom.LICENCES).iterdir() if path.stat().st_size}
    assert {part["name"] for part in parts} <= kept and len(parts) > 20


@pytest.mark.root
def test_a_node_of_it_under_kills(
    program: Path, make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, figures: list[str]
) -> None:
    """Each process starts the others in the compiled form: supervisor, keeper, daemon, worker; and the keeper becomes itself again."""
    monkeypatch.setenv("AWSOMEFSD_BINARY", str(program))
    began = time.monotonic()
    node = make_node(size_bytes=2 << 30)
    figures.append(f"compiled program: a node is up after {time.monotonic() - began:.1f} s")
    for role in ("supervisor", "keeper", "daemon", "worker"):
        assert os.readlink(f"/proc/{node.pid(role)}/exe") == os.path.realpath(program), role
    file = node.mountpoint / "file"
    with file.open("w") as out:
        for number in range(400):
            out.write(f"{number}\n")
            out.flush()
            if number in (100, 200, 300):
                role = {100: "worker", 200: "daemon", 300: "keeper"}[number]
                node.replaced(role, node.kill(role)[role])
    assert file.read_text() == "".join(f"{number}\n" for number in range(400))
    keeper = node.pid("keeper")
    assert f"keeper pid {keeper} " in node.cli("keeper", "--upgrade")
    node.replaced("worker", node.kill("worker")["worker"])
    assert file.stat().st_size > 1_000
    node.cli("umount", "--all")
    assert not node.mounted()
