"""build.py image: the compiled program as a container image (dist/awsomefsd-VERSION-ARCH.oci.tar), written without a container engine.

Two layers: of Debian what the program cannot run without (glibc's libraries and its C.UTF-8, libstdc++, zlib, and blkid, which looks before
a device is taken), and the program.  No shell, no package manager.  What is of Debian is copied from the machine that builds, as the
program's own libraries are; each file's package and version stand in the list of contents, in licences and in var/lib/dpkg/status.d, where
scanners look.

State and sockets are volumes.  The keeper of a pod is started on the host, from a copy of the program (docs/KUBERNETES.md), with the
host's glibc: the floor of the binary counts for hosts too.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from buildtools import binary, bom, elf
from buildtools.oci import Archive, Tree
from buildtools.say import BuildError, good, size, step

NAME = "awsomefs/awsomefsd"  # image.repository of the chart
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SIZE_MAX = 60 << 20  # of the file; compressed
PROGRAMS = ("/usr/sbin/blkid",)
LOCALE = "/usr/lib/locale/C.utf8"  # the program does not start without one that knows UTF-8
RELEASE = "/usr/lib/os-release"
CYCLONEDX = "application/vnd.cyclonedx+json"
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64", "etc/os-release": "../usr/lib/os-release"}
_FOLDERS = {
    "tmp": 0o1777, "proc": 0o755, "sys": 0o755, "dev": 0o755, "run/awsomefsd": 0o711, "var/lib/awsomefsd": 0o700,
    "var/log/awsomefsd": 0o750, "etc/awsomefsd": 0o755, "root": 0o700,
}  # fmt: skip
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/nonexistent\nnobody:x:65534:65534:nobody:/nonexistent:/nonexistent\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\nawsomefs:x:999:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_CONTROL = ("Package", "Version", "Architecture", "Source", "Maintainer")


def path_of(target: Path) -> Path:
    return target.with_name(target.name + ".oci.tar")


def _library(name: str) -> Path:
    for folder in (f"/usr/lib/{platform.machine()}-linux-gnu", f"/lib/{platform.machine()}-linux-gnu", "/usr/lib64", "/lib64"):
        if (path := Path(folder) / name).exists():
            return path
    raise BuildError(f"{name} is not on this machine")


def libraries(target: Path) -> dict[str, Path]:
    """Everything that is loaded and is not beside the program, to the last: by name."""
    wanted = [*elf.foreign_libraries(target), *(name for program in PROGRAMS for name in elf.needs(Path(program)).libraries)]
    found: dict[str, Path] = {}
    while wanted:
        if (name := wanted.pop()) not in found:
            found[name] = _library(name)
            wanted += elf.needs(found[name]).libraries
    return dict(sorted(found.items()))


def _packages(paths: list[str]) -> list[dict[str, str]]:
    """The control fields of the Debian packages of these files, which may stand in their lists with or without /usr."""
    spelled = {path: {path, path.removeprefix("/usr"), f"/usr{path}"} for path in paths}
    said = subprocess.run(["dpkg", "-S", *sorted(set().union(*spelled.values()))], capture_output=True, text=True, check=False).stdout
    owners = {place: owner for owner, _, place in (row.partition(": ") for row in said.splitlines())}
    foreign = [path for path, ways in spelled.items() if not ways & owners.keys()]
    if foreign:
        raise BuildError(f"{foreign[0]} is of no Debian package: an image is built on Debian 12 (docs/PACKAGING.md)")
    names = sorted({owners[(ways & owners.keys()).pop()] for ways in spelled.values()})
    told = subprocess.run(["dpkg-query", "-s", *names], capture_output=True, text=True, check=True).stdout
    rows = [dict(row.partition(": ")[::2] for row in text.splitlines()) for text in told.strip().split("\n\n")]
    return [{name: row[name] for name in _CONTROL if name in row} for row in rows]


def base(target: Path) -> tuple[Tree, list[dict[str, str]]]:
    """The layer that is of Debian, and the control fields of its packages."""
    tree, sources = Tree(links=dict(_LINKS), folders=dict(_FOLDERS)), [RELEASE, *PROGRAMS]
    for place, text in _FILES.items():
        tree.add(place, text)
    for name, path in libraries(target).items():
        place = "usr/lib64" if name.startswith("ld-linux") else f"usr/lib/{platform.machine()}-linux-gnu"
        tree.copy(path.resolve(), f"{place}/{name}")
        sources.append(str(path.resolve()))
    for source in (RELEASE, *PROGRAMS):
        tree.copy(Path(source), source.lstrip("/"))
    tree.copy_all(Path(LOCALE), LOCALE.lstrip("/"))
    sources.append(f"{LOCALE}/LC_CTYPE")
    rows = _packages(sources)
    for fields in rows:
        name = fields["Package"]
        tree.copy(Path(f"/usr/share/doc/{name}/copyright").resolve(), f"usr/share/doc/{name}/copyright")
        tree.add(f"var/lib/dpkg/status.d/{name}", "".join(f"{key}: {value}\n" for key, value in fields.items()))
    return tree, rows


def program(target: Path) -> Tree:
    tree = Tree(links={"usr/bin/awsomefsd": "../lib/awsomefsd/awsomefsd"})
    tree.copy_all(target, "usr/lib/awsomefsd")
    return tree


def contents(target: Path, packages: list[dict[str, str]]) -> bytes:
    """The list of contents: the program's own, and Debian's part."""
    listed = json.loads((target / bom.SBOM).read_text())
    known = {row["purl"] for row in listed["components"]}
    for fields in packages:
        row = bom.component(fields["Package"], fields["Version"], f"pkg:deb/debian/{fields['Package']}@{fields['Version']}", "")
        if row["purl"] not in known:
            listed["components"].append(row)
    listed["metadata"]["component"] |= {"type": "container"}
    return (json.dumps(listed, indent=1) + "\n").encode()


def labels() -> dict[str, str]:
    about = {
        "title": "awsomefsd", "description": "Storage of Linux machines as one POSIX filesystem", "licenses": "MIT",
        "version": binary.version(), "revision": binary.revision(), "base.name": "debian:12",
    }  # fmt: skip
    return {f"org.opencontainers.image.{name}": value for name, value in about.items() if value}


def process() -> dict[str, Any]:
    return {
        "Entrypoint": ["/usr/bin/awsomefsd"], "Cmd": ["--help"], "WorkingDir": "/", "StopSignal": "SIGTERM", "Labels": labels(),
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"], "Volumes": {"/var/lib/awsomefsd": {}, "/run/awsomefsd": {}},
    }  # fmt: skip


def build(target: Path, made: Path | None = None) -> Path:
    """The image of a built program, at `made`, else beside it."""
    step("Container image")
    if shutil.which("dpkg-query") is None or not Path(LOCALE).is_dir():
        raise BuildError("the image takes glibc and its C.UTF-8 from Debian 12 (docs/PACKAGING.md)")
    below, packages = base(target)
    layers = [(f"debian 12: {' '.join(row['Package'] for row in packages)}", below), ("python3 build.py binary", program(target))]
    attached = [(CYCLONEDX, contents(target, packages), {"org.opencontainers.image.title": bom.SBOM})]
    name = f"{NAME}:{binary.version()}"
    archive = Archive(name, ARCHITECTURES[platform.machine()], int(binary.epoch()), process(), layers, attached)
    made = made or path_of(target)
    digest = archive.write(made)
    good(f"{made.name}, {size(made.stat().st_size)}, {name}@{digest[:19]}")
    if made.stat().st_size > SIZE_MAX:
        raise BuildError(f"{made.name} has {size(made.stat().st_size)}, wanted: under {size(SIZE_MAX)}")
    return made
