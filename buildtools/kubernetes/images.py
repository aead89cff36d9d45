"""The container images of a trial, of one layer each, made without an engine and without a registry.

Upstream's suite asks for images by name.  What stands under these names here is enough for what the storage specs do: Debian's static
busybox (also for nginx, of which they want a container that runs), our main around two words of agnhost, and Debian's own coreutils
with their libraries where a program of glibc is asked for.  Ours for the lives: fio and the writer that checks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from buildtools.kubernetes.rig import Rig
from buildtools.oci import Archive, Tree
from buildtools.say import BuildError, good

E2E = "registry.k8s.io/e2e-test-images"
SIDECARS = "registry.k8s.io/sig-storage"
PAUSE = "registry.k8s.io/pause:3.10.1"
LOAD = "awsomefs.test/load:1"
_GLIBC = (
    "bash", "cat", "chmod", "cp", "date", "dd", "df", "echo", "false", "find", "findmnt", "grep", "head", "id", "ln", "ls", "md5sum",
    "mkdir", "mktemp", "mount", "mv", "od", "rm", "rmdir", "sed", "seq", "sha256sum", "sleep", "stat", "sync", "tail", "tee", "test",
    "touch", "tr", "true", "truncate", "umount", "blockdev", "base64", "basename", "sort", "wc", "cut", "env",
)  # fmt: skip


def _found(name: str) -> Path:
    path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
    if path is None:
        raise BuildError(f"{name} is not on this machine; images of the trial are made of its programs")
    return Path(path).resolve()


def libraries(program: Path) -> set[Path]:
    """Everything that the loader takes for it, by the names it looks for."""
    said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", said)}


def busybox(tree: Tree) -> Tree:
    """A shell and its commands."""
    program = _found("busybox")
    tree.copy(program, "bin/busybox")
    for library in libraries(program):
        tree.copy(library, str(library).lstrip("/"))
    for name in subprocess.run([str(program), "--list"], capture_output=True, text=True, check=True).stdout.split():
        if name != "busybox":
            tree.links[f"bin/{name}"] = "busybox"
    tree.folders |= {"tmp": 0o1777, "root": 0o700, "proc": 0o755, "sys": 0o755, "dev": 0o755, "var/run": 0o755, "mnt": 0o777}
    tree.add("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    tree.add("etc/group", "root:x:0:\nnogroup:x:65534:\n")
    return tree


def _machine(names: Sequence[str]) -> Tree:
    """Programs of this machine with their libraries, before busybox's of the same name."""
    tree = busybox(Tree())
    for name in names:
        path = _found(name)
        tree.links.pop(f"bin/{name}", None)
        tree.copy(path, f"usr/bin/{name}")
        tree.links[f"bin/{name}"] = f"../usr/bin/{name}"
        for library in libraries(path):
            tree.copy(library, str(library).lstrip("/"))
    if "bash" in names:  # busybox's shell would run busybox's own dd and stat, whatever PATH says
        tree.links["bin/sh"] = "bash"
    return tree


def _own(rig: Rig, *names: str, below: Tree | None = None) -> Tree:
    tree = below or Tree()
    for name in names:
        tree.copy(rig.bin / name, name)
    tree.folders.setdefault("tmp", 0o1777)
    return tree


def _contents(rig: Rig) -> dict[str, tuple[Tree, list[str]]]:
    """Name -> (layer, entrypoint); a shell is what runs without one."""
    return {
        PAUSE: (_own(rig, "init"), ["/init"]),
        f"{E2E}/busybox:1.37.0-1": (busybox(Tree()), []),
        f"{E2E}/nginx:1.15-4": (busybox(Tree()), ["/bin/sleep", "1000000"]),
        f"{E2E}/agnhost:2.63.0": (_own(rig, "agnhost", below=_machine(["nsenter", "stat"])), ["/agnhost"]),
        f"{E2E}/glibc-dns-testing:2.0.0": (_machine(_GLIBC), []),
        f"{SIDECARS}/csi-provisioner:v6.3.0": (_own(rig, "csi-provisioner"), ["/csi-provisioner"]),
        f"{SIDECARS}/csi-resizer:v2.2.0": (_own(rig, "csi-resizer"), ["/csi-resizer"]),
        LOAD: (_own(rig, "writer", below=_machine(["fio", "blockdev"])), []),
    }


def build(rig: Rig) -> None:
    """The archives in `images`, made anew when a program of them is newer."""
    place = rig.cache / "images"
    place.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in [*rig.bin.iterdir(), Path(__file__)])
    wanted = _contents(rig)
    for name, (tree, entry) in wanted.items():
        path = place / f"{re.sub(r'[^a-z0-9.]+', '-', name)}.k8s.tar"
        if not path.exists() or path.stat().st_mtime < newest:
            process = {"WorkingDir": "/", "Env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL=C"]}
            process |= {"Entrypoint": entry} if entry else {"Cmd": ["/bin/sh"]}
            temporary = path.with_suffix(".new")
            Archive(name, "amd64", 0, process, [("a trial's", tree)]).write(temporary)
            os.replace(temporary, path)
    good(f"{len(wanted)} images")


def another_build(archive: Path, made: Path, name: str) -> None:
    """The same program as another build: one file more beside it, so that its digest, and with it its copy on the host, is another one."""
    tree = Tree()
    tree.add("usr/lib/awsomefsd/BUILD", f"{name}\n")
    layer = tree.tar(0)
    with tarfile.open(archive) as given:

        def read(place: str) -> bytes:
            file = given.extractfile(place)
            assert file is not None
            return file.read()

        saved = json.loads(read("manifest.json"))[0]
        config = json.loads(read(saved["Config"]))
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
        config["history"].append({"created_by": "another build"})
        out = Tree()
        for place in saved["Layers"]:
            out.add(place, read(place))
    out.add("config.json", json.dumps(config))
    out.add("another.tar", layer)
    out.add("manifest.json", json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": [*saved["Layers"], "another.tar"]}]))
    made.write_bytes(out.tar(0))
