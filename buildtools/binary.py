"""build.py binary: the compiled program, a directory with one executable that needs nothing of a machine but its C library.

Nuitka compiles our modules to C and links Debian's static libpython (optimised, unlike most others); foreign packages travel as bytecode
and as the wheels' own libraries, which are never stripped.  packaging/binary holds what goes in: locked packages with hashes, locked tools,
the plugin, the one C function.  build/binary holds the venv of the build and Nuitka's output, so a second build compiles what changed.

Checked before it may be called a build: no library but glibc's is taken from the machine, no symbol is newer than FLOOR, nothing but this
commit's version is in it, and its own self-check says yes.

Rejected: one file (unpacks at every start, and serves as a forked child, which neither Type=notify nor a descriptor store understands).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from buildtools import bom, elf
from buildtools.say import CHECKOUT, BuildError, good, line, run, size, step, warn

RECIPE = CHECKOUT / "packaging" / "binary"
WORK = CHECKOUT / "build" / "binary"
VENV = WORK / "venv"
PYTHON = Path("/usr/bin/python3.11")
# Of a build, beside the machine's own packages.
INPUTS = ("awsomefsd", "packaging/binary", "pyproject.toml", "LICENSE", "buildtools/binary.py", "buildtools/bom.py")
STATIC = "/usr/lib/python3.11/config-3.11-{arch}-linux-gnu/libpython3.11.a"
FLOOR = (2, 34)  # glibc of RHEL 9; Ubuntu 22.04 has 2.35, Debian 12 2.36
SIZE_MAX = 90_000_000  # bytes
BUILD_S_MAX = 7_200
# Of glibc; and what the wheels too expect everywhere (manylinux): Debian's own build of libstdc++ would need a newer glibc than FLOOR.
OF_THE_MACHINE = {
    "libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libresolv.so.2",
    "libgcc_s.so.1", "libstdc++.so.6", "libz.so.1",
}  # fmt: skip
EXPAT = "/usr/lib/{arch}-linux-gnu/libexpat.a"
C_FLAGS = "-g0"  # of what pip compiles here (pyfuse3): Debian's Python would add 2 MiB of debug information
# Never imported by what we ship, or only where somebody develops.
LEFT_OUT = (
    "pip", "setuptools", "pkg_resources", "_distutils_hack", "wheel", "distutils", "pytest", "_pytest", "unittest", "pydoc", "doctest",
    "lmdb.cffi", "lmdb.tool",
    "tkinter", "test", "lib2to3", "idlelib", "ensurepip", "venv", "sqlite3", "curses", "readline", "pygments", "markdown_it", "mdurl",
    "pydantic.v1", "pydantic.mypy", "pycparser", "trio.testing", "trio._tests", "hypothesis", "grpc_tools", "IPython", "numpy", "twisted",
    "yaml._yaml",  # libyaml for speed; a configuration file is read by Python
    "_pydecimal", "_pyio", "cgi", "cgitb", "fileinput", "imaplib", "mailcap", "modulefinder", "pickletools", "pipes", "poplib", "pstats",
    "pyclbr", "sndhdr", "symtable", "telnetlib", "nntplib", "trace", "xdrlib",
    "rich.markdown", "rich.syntax", "Cython", "pdb", "bdb", "cmd", "code", "codeop", "xmlrpc", "turtle", "lzma", "bz2", "_lzma", "_bz2",
)  # fmt: skip
# Of the standard library, which Nuitka takes as a whole: no name and no file of ours is in an encoding of East Asia.
REMOVED = ("_codecs_cn.so", "_codecs_hk.so", "_codecs_iso2022.so", "_codecs_jp.so", "_codecs_kr.so", "_codecs_tw.so", "_multibytecodec.so")
UNUSED_DATA = "grpc/_cython/_credentials/roots.pem"  # the cluster has its own authority
NEEDED = {  # file -> Debian package
    "/usr/include/fuse3/fuse.h": "libfuse3-dev",
    "/usr/bin/pkg-config": "pkg-config",
    "/usr/bin/patchelf": "patchelf",
    "/usr/bin/gcc": "gcc",
    "/usr/lib/python3.11/ensurepip/__init__.py": "python3.11-venv",
}


def version() -> str:
    """The one place of it: pyproject.toml, which awsomefsd/__init__.py and a tag must agree with."""
    import tomllib

    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    said = (CHECKOUT / "awsomefsd" / "__init__.py").read_text()
    if f'__version__ = "{wanted}"' not in said:
        raise BuildError(f"awsomefsd/__init__.py does not say {wanted}, as pyproject.toml does")
    tags = _git("tag", "--points-at", "HEAD").split()
    if tags and f"v{wanted}" not in tags:
        raise BuildError(f"this commit has the tag {tags[0]}, pyproject.toml says {wanted}")
    return str(wanted)


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def epoch() -> str:
    """The time in everything that has one: SOURCE_DATE_EPOCH, else that of the last commit of INPUTS, so that a commit of something else
    changes no byte."""
    return os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct", "--", *INPUTS) or "0"


def revision() -> str:
    """The last commit of INPUTS; with a word when they have changed since, "" where there is no git."""
    commit = _git("log", "-1", "--format=%H", "--", *INPUTS)
    return f"{commit}-changed" if commit and _git("status", "--porcelain", "--", *INPUTS) else commit


def directory() -> Path:
    return CHECKOUT / "dist" / f"awsomefsd-{version()}-{platform.machine()}"


def executable() -> Path | None:
    """The binary that tests use: AWSOMEFSD_BINARY, or the last build; None where there is none."""
    named = os.environ.get("AWSOMEFSD_BINARY")
    path = Path(named) if named else directory() / "awsomefsd"
    if named and not os.access(path, os.X_OK):
        raise BuildError(f"AWSOMEFSD_BINARY names {path}, which is no program")
    return path.absolute() if path.exists() else None


def current() -> Path | None:
    """The executable in dist/ if it is of these very sources."""
    target = directory()
    stamp = target.parent / (target.name + ".sources")
    found = (target / "awsomefsd").exists() and stamp.exists() and stamp.read_text().strip() == sources_digest()
    return target / "awsomefsd" if found else None


# --- the build ---------------------------------------------------------------------------------------------------------------


def check_tools() -> None:
    wanted = NEEDED | {STATIC.format(arch=platform.machine()): "python3.11-dev", str(PYTHON): "python3.11"}
    missing = sorted(package for path, package in wanted.items() if not os.path.exists(path))
    if missing:
        raise BuildError(f"the binary is built on Debian 12 (docs/PACKAGING.md); missing: apt-get install -y {' '.join(missing)}")


def _environment() -> dict[str, str]:
    """Nothing of the caller's shell decides what is built."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR") or name.lower().endswith("_proxy")}
    kept |= {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": epoch(), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    kept |= {"NUITKA_CACHE_DIR": str(CHECKOUT / "build" / "nuitka-cache"), "CCACHE_DIR": str(CHECKOUT / "build" / "ccache")}
    return kept


def make_venv() -> Path:
    """The locked packages and tools and nothing else; made anew when a lock changes."""
    locks = [RECIPE / "requirements.lock", RECIPE / "tools.lock"]
    stamp, wanted = VENV / "stamp", hashlib.sha256(b"".join(lock.read_bytes() for lock in locks) + C_FLAGS.encode()).hexdigest()
    python = VENV / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    step("Preparing the venv of the build")
    shutil.rmtree(VENV, ignore_errors=True)
    run([str(PYTHON), "-m", "venv", str(VENV)], what="making build/binary/venv")
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes"]
    sources = ["--only-binary", ":all:", "--no-binary", "pyfuse3,nuitka"]
    for lock in locks:
        run([*install, *sources, "-r", str(lock)], what=f"pip install {lock.name}", timeout_s=1800, env={**os.environ, "CFLAGS": C_FLAGS})
    stamp.write_text(wanted)
    return python


def _nuitka(python: Path, source: Path, jobs: int) -> list[str]:
    return [
        str(python), "-m", "nuitka", "--standalone", "--static-libpython=yes", "--deployment", "--assume-yes-for-downloads",
        "--python-flag=no_site,no_warnings", f"--jobs={jobs}", f"--output-dir={WORK / 'out'}", "--output-filename=awsomefsd",
        f"--user-plugin={RECIPE / 'bytecode_plugin.py'}", "--include-package=awsomefsd", "--include-package=grpc_health.v1",
        "--include-package=grpc_reflection.v1alpha", "--include-package=lmdb", "--lto=no", "--include-module=pyfuse3",
        f"--nofollow-import-to={','.join(LEFT_OUT)}",
        f"--noinclude-data-files={UNUSED_DATA}", f"--include-data-dir={source / 'awsomefsd/ui/static'}=ui",
        f"--report={WORK / 'report.xml'}", "--noinclude-unittest-mode=nofollow", "--noinclude-setuptools-mode=nofollow",
        "--noinclude-pytest-mode=nofollow", str(source / "entry.py"),
    ]  # fmt: skip


def compile_program(jobs: int) -> Path:
    """Nuitka's output directory."""
    python, source = make_venv(), WORK / "source"
    shutil.rmtree(source, ignore_errors=True)
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CHECKOUT / "awsomefsd", source / "awsomefsd", ignore=skipped)  # what is edited meanwhile is not mixed in
    shutil.copy(RECIPE / "entry.py", source)
    wrapped = WORK / "hypot.o"
    run(["gcc", "-O2", "-c", "-o", str(wrapped), str(RECIPE / "hypot.c")], what="compiling hypot.c")
    shutil.rmtree(WORK / "out" / "entry.dist", ignore_errors=True)
    step(f"Compiling (about 12 minutes of CPU the first time, {jobs} at once)")
    env = _environment() | {"PYTHONPATH": str(source), "LDFLAGS": f"{wrapped} -Wl,--wrap=hypot"}
    log = WORK / "nuitka.log"
    with log.open("wb") as out:
        done = subprocess.run(_nuitka(python, source, jobs), env=env, cwd=WORK, stdout=out, stderr=out, timeout=BUILD_S_MAX, check=False)
    if done.returncode:
        raise BuildError(f"Nuitka ended with {done.returncode}; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")
    return WORK / "out" / "entry.dist"


def _fuse_library() -> Path:
    for folder in (f"/lib/{platform.machine()}-linux-gnu", "/usr/lib64", "/lib64"):
        path = Path(folder) / "libfuse3.so.3"
        if path.exists():
            return path.resolve()
    raise BuildError("libfuse3.so.3 is not there: apt-get install -y libfuse3-3")


def _expat(target: Path) -> None:
    """Debian's expat as a library that asks for no function of glibc 2.36 (packaging/binary/arc4random.c)."""
    words = ["gcc", "-O2", "-fPIC", "-shared", "-o", str(target), "-Wl,-soname,libexpat.so.1", str(RECIPE / "arc4random.c")]
    words += ["-Wl,--build-id=none,--wrap=arc4random_buf,--whole-archive", EXPAT.format(arch=platform.machine()), "-Wl,--no-whole-archive"]
    run(words, what="linking libexpat.so.1")


def assemble(built: Path) -> Path:
    """dist/awsomefsd-VERSION-ARCH, complete."""
    target = directory()
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    shutil.copytree(built, target)
    shutil.copy(_fuse_library(), target / "libfuse3.so.3")  # of the pyfuse3 adapter alone; may be replaced by another build of it
    if (target / "libexpat.so.1").exists():
        _expat(target / "libexpat.so.1")
    for name in REMOVED:
        (target / name).unlink()
    run(["strip", "--strip-unneeded", str(target / "awsomefsd")], what="strip")  # ours only
    bom.write(target, VENV / "bin" / "python", version(), int(epoch()))
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path == target / "awsomefsd" else 0o644)
        os.utime(path, (int(epoch()),) * 2)
    return target


def check(target: Path) -> None:
    """Raises BuildError unless the build is what it promises."""
    floor, who = elf.glibc_floor(target)
    text, names = ".".join(map(str, floor)), ", ".join(str(path.relative_to(target)) for path in who[:3])
    if floor > FLOOR:
        raise BuildError(f"needs glibc {text} ({names}), promised is {'.'.join(map(str, FLOOR))}")
    good(f"needs glibc {text} ({names}) and nothing newer")
    wanted = elf.foreign_libraries(target)
    foreign = {name: paths for name, paths in wanted.items() if name not in OF_THE_MACHINE and "ld-linux" not in name}
    if foreign:
        raise BuildError(f"takes libraries from the machine: {', '.join(f'{name} for {paths[0].name}' for name, paths in foreign.items())}")
    good("takes no library from the machine but glibc's, libstdc++ and zlib")
    done = subprocess.run([target / "awsomefsd", "self-check"], capture_output=True, text=True, env={"PATH": "/usr/bin"}, check=False)
    if done.returncode:
        raise BuildError(f"its self-check says no:\n{done.stdout}{done.stderr}")
    good("its self-check says yes")
    total = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    (good if total <= SIZE_MAX else warn)(f"{total / 1e6:.1f} MB ({size(total)}) installed; wanted: under {SIZE_MAX / 1e6:.0f} MB")


def sources_digest() -> str:
    """Of everything that goes in; a build with another one is old."""
    digest = hashlib.sha256()
    places = [CHECKOUT / name for name in INPUTS]
    within = [path for place in places if place.is_dir() for path in place.rglob("*") if path.is_file()]
    for path in sorted([*within, *(place for place in places if place.is_file())]):
        if "__pycache__" in path.parts:
            continue
        digest.update(str(path.relative_to(CHECKOUT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def archive(target: Path) -> Path:
    """The directory as one file, the same bytes for the same content."""
    packed = target.with_name(target.name + ".tar.xz")

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        for name, value in {"uid": 0, "gid": 0, "uname": "root", "gname": "root"}.items():
            setattr(member, name, value)
        return member

    with tarfile.open(packed, "w:xz", preset=6) as tar:
        for path in [target, *sorted(target.rglob("*"))]:
            tar.add(path, arcname=str(path.relative_to(target.parent)), recursive=False, filter=plain)
    return packed


def build(jobs: int = 0) -> Path:
    """All of it; returns the directory."""
    began, cpu = time.monotonic(), os.times()
    check_tools()
    os.environ.setdefault("SOURCE_DATE_EPOCH", epoch())  # a commit that comes meanwhile changes nothing
    sources = sources_digest()  # as they are copied, not as they are edited meanwhile
    target = assemble(compile_program(jobs or os.cpu_count() or 1))
    (target.parent / (target.name + ".sources")).write_text(sources + "\n")
    step("Checks")
    check(target)
    spent = os.times()
    line(f"  {target}: {time.monotonic() - began:.0f} s, {spent.children_user - cpu.children_user:.0f} s of CPU, {sys.version.split()[0]}")
    return target
