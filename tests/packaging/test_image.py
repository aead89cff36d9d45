"""The container image: the archive as engines read it, what is in it and what is not; as a soak test, started by containerd and runc."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from buildtools import bom, elf, image, loops, oci
from buildtools.nodes import await_true
from buildtools.say import CHECKOUT
from tests.packaging.container_engine import Engine, missing

START_S = 120.0
PROGRAM = "/usr/bin/awsomefsd"


def read(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def follow(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    """The blob that a descriptor names, which must be the bytes it promises."""
    algorithm, _, digest = descriptor["digest"].partition(":")
    content = files[f"blobs/{algorithm}/{digest}"]
    assert hashlib.sha256(content).hexdigest() == digest and len(content) == descriptor["size"]
    return content


def a_program(folder: Path) -> Path:
    """Something that stands for what `build.py binary` makes."""
    folder.mkdir()
    shutil.copy(os.path.realpath("/bin/sh"), folder / "awsomefsd")
    (folder / bom.SBOM).write_text(json.dumps({"metadata": {"component": {"name": "awsomefsd"}}, "components": []}))
    return folder


def test_an_archive_is_what_engines_read(tmp_path: Path) -> None:
    tree = oci.Tree(links={"bin": "usr/bin"}, folders={"tmp": 0o1777})
    tree.add("usr/bin/program", b"bytes", 0o755)
    attached = [("application/x-list", b"[]", {"a": "b"})]
    archive = oci.Archive("some/name:1.2", "amd64", 1_000_000_000, {"Entrypoint": ["/bin/program"]}, [("first", tree)], attached)
    digest = archive.write(tmp_path / "one")
    files = read(tmp_path / "one")
    index = json.loads(files["index.json"])
    named, listed = index["manifests"]
    assert named["digest"] == digest and named["annotations"]["io.containerd.image.name"] == "docker.io/some/name:1.2"
    manifest = json.loads(follow(files, named))
    config = json.loads(follow(files, manifest["config"]))
    assert config["created"] == "2001-09-09T01:46:40Z" and config["config"]["Entrypoint"] == ["/bin/program"]
    raw = gzip.decompress(follow(files, manifest["layers"][0]))
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(raw).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        rows = {member.name: (member.mode, member.uid, member.mtime, member.type) for member in tar}
    assert list(rows) == sorted(rows) and rows["tmp"][0] == 0o1777 and rows["usr/bin/program"] == (0o755, 0, 1_000_000_000, tarfile.REGTYPE)
    artifact = json.loads(follow(files, listed))
    assert artifact["subject"]["digest"] == digest and follow(files, artifact["layers"][0]) == b"[]"
    [saved] = json.loads(files["manifest.json"])
    assert saved["RepoTags"] == ["some/name:1.2"] and all(place in files for place in [saved["Config"], *saved["Layers"]])


def test_an_image_is_complete_and_the_same_twice(tmp_path: Path) -> None:
    """Every library that anything in it asks for is in it, to the last; no shell; a locale; the chart's name."""
    if shutil.which("dpkg-query") is None or not Path(image.LOCALE).is_dir():
        pytest.skip("images are built on Debian 12")
    made = image.build(a_program(tmp_path / "awsomefsd-1"))
    assert image.build(tmp_path / "awsomefsd-1", tmp_path / "again").read_bytes() == made.read_bytes()
    check(made, tmp_path / "root")
    values = yaml.safe_load((CHECKOUT / "packaging/helm/awsomefs/values.yaml").read_text())
    assert values["image"]["repository"] == image.NAME


def check(archive: Path, root: Path) -> None:
    """Unpacks it to look at it."""
    files = read(archive)
    index = json.loads(files["index.json"])
    manifest = json.loads(follow(files, index["manifests"][0]))
    for layer in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(follow(files, layer)))) as tar:
            tar.extractall(root, filter="tar")
    known = {path.name for path in root.rglob("*")}
    asked = {name for path in elf.elf_files(root) for name in elf.needs(path).libraries}
    assert asked <= known and (root / "lib64/ld-linux-x86-64.so.2").is_file() and len(asked) > 2
    assert (root / "usr/lib/locale/C.utf8/LC_CTYPE").stat().st_size and (root / "usr/sbin/blkid").is_file()
    assert not {"sh", "bash", "dash", "busybox", "apt", "dpkg", "perl"} & {path.name for path in (root / "usr/bin").iterdir()}
    assert os.readlink(root / "usr/bin/awsomefsd") == "../lib/awsomefsd/awsomefsd"
    config = json.loads(follow(files, manifest["config"]))["config"]
    assert config["Entrypoint"] == ["/usr/bin/awsomefsd"] and "LANG=C.UTF-8" in config["Env"]
    labels = config["Labels"]
    assert re.fullmatch(r"[0-9a-f]{40}(-changed)?|", labels.get("org.opencontainers.image.revision", ""))
    parts = {row["name"] for row in json.loads(follow(files, json.loads(follow(files, index["manifests"][1]))["layers"][0]))["components"]}
    owned = {path.name for path in (root / "var/lib/dpkg/status.d").iterdir()}
    assert {"libc6", "util-linux", "libblkid1"} <= owned <= parts
    assert all((root / f"usr/share/doc/{name}/copyright").stat().st_size for name in owned)


@pytest.fixture(scope="module")
def made(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image.build(program.parent, tmp_path_factory.mktemp("image") / "made.oci.tar")


def test_the_image_of_the_program(made: Path, tmp_path: Path) -> None:
    check(made, tmp_path / "root")
    os_floor, _ = elf.glibc_floor(tmp_path / "root/usr/lib/awsomefsd")
    assert os_floor <= elf.glibc("GLIBC_2.34")


# --- started ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    why = missing()
    if why:
        pytest.skip(why)
    made = Engine(tmp_path_factory.mktemp("engine"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def loaded(engine: Engine, made: Path) -> str:
    return engine.load(made)


@pytest.mark.soak
@pytest.mark.root
def test_containerd_runs_it(engine: Engine, loaded: str) -> None:
    assert loaded.startswith(f"docker.io/{image.NAME}:")
    assert re.match(r"awsomefsd \d", engine.run(loaded, PROGRAM, "--version")[1])
    assert "Usage: awsomefsd" in engine.run(loaded)[1]
    said = engine.run(loaded, PROGRAM, "self-check", "-o", "json", options=("--privileged", "--device", "/dev/fuse"))[1]
    found = json.loads(said[said.index("{\n") :])  # after what gRPC has to say
    assert found["ok"], found
    assert "adapter" in json.dumps(found["findings"])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host that containers share mounts with, in both directions, and a loop device for them."""
    for name in ("state", "run", "log", "mnt"):
        (tmp_path / name).mkdir()
    subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
    subprocess.run(["mount", "--make-rshared", tmp_path], check=True)
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(4 << 30)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", tmp_path / "mnt"], stderr=subprocess.DEVNULL, check=False)
        for device in loops.of_file(tmp_path / "disk.img"):
            loops.detach(device)
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.soak
@pytest.mark.root
@pytest.mark.timeout(900)
def test_a_node_in_a_container(engine: Engine, loaded: str, place: Path) -> None:
    """Privileged, as the chart has it: it takes a loop device, mounts a volume that the host sees, goes on when processes are killed."""
    if not loops.usable():
        pytest.skip("no loop devices")
    disk = loops.attach(place / "disk.img")
    env = {"STATE_DIR": place / "state", "RUN_DIR": place / "run", "CLUSTER_LISTEN": "", "METADATA_LISTEN": ""}
    options = ["--privileged", "--rootfs-propagation", "rshared", "--mount", "type=bind,src=/dev,dst=/dev,options=rbind:rw"]
    options += ["--mount", f"type=bind,src={place},dst={place},options=rbind:rw:rshared"]
    for name, value in env.items():
        options += ["--env", f"AWSOMEFSD_{name}={value}"]
    engine.start(loaded, "node", PROGRAM, "supervise", "--log-dir", str(place / "log"), options=tuple(options))

    def cli(*words: str, check: bool = True) -> str:
        return engine.inside("node", PROGRAM, *words, check=check)[1]

    def pid(role: str) -> int:
        return next((one for one in engine.pids("node") if f"\0{role}\0".encode() in Path(f"/proc/{one}/cmdline").read_bytes()), 0)

    await_true("a daemon that answers", lambda: "waiting" in cli("status", check=False), START_S)
    cli("init")
    await_true("a node", lambda: "waiting" not in cli("status", check=False) and "ok " in cli("status", check=False), START_S)
    cli("device", "add", disk)
    cli("volume", "create", "demo")
    cli("mount", "demo", str(place / "mnt"))
    told = ["findmnt", "-n", "-o", "FSTYPE", str(place / "mnt")]
    assert subprocess.run(told, capture_output=True, text=True, check=True).stdout == "fuse.awsomefs\n"
    with (place / "mnt" / "file").open("w") as file:
        for number in range(300):
            file.write(f"{number}\n")
            file.flush()
            if number in (100, 200):
                old = pid(role := {100: "worker", 200: "run"}[number])
                os.kill(old, signal.SIGKILL)
                await_true(f"another {role}", lambda role=role, old=old: pid(role) not in (0, old), START_S)
        os.fsync(file.fileno())
    assert (place / "mnt" / "file").read_text() == "".join(f"{number}\n" for number in range(300))
    await_true("an unmount", lambda: "unmounted" in cli("umount", "--all", check=False), START_S)
    assert subprocess.run(["findmnt", place / "mnt"], capture_output=True, check=False).returncode == 1, "the host sees that too"
    engine.stop("node")
