"""Programs as users run them, measured as the calls of measures.py are: git, a build of C, fio, PostgreSQL.

A program that is not there is NotInstalled: the row then has no figures.  One that fails on a target is an OSError.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.bench.measures import Amounts, Measured, Row, source_tree, timed

PROGRAM_S_MAX = 300
CLIENTS = 4
QUEUE = 16
PLACES = "/usr/lib/postgresql/*/bin"  # where Debian keeps the server's programs

# of no user and no machine
GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent",
    "GIT_AUTHOR_NAME": "bench", "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench", "GIT_COMMITTER_EMAIL": "bench@localhost",
}  # fmt: skip

HEADER = """#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct row {{ int key; char text[64]; }};
{declarations}
"""
UNIT = """#include "all.h"
int work_{n}(struct row *rows, int count) {{
    int sum = {n};
    for (int i = 0; i < count; i++) {{
        sum += rows[i].key; rows[i].key = sum % 97;
        snprintf(rows[i].text, sizeof rows[i].text, "%d", sum);
    }}
    return sum + (int)strlen(rows[0].text);
}}
"""
MAIN = """#include "all.h"
int main(void) {{ struct row rows[8] = {{{{0}}}}; int sum = 0; {calls} printf("%d\\n", sum); return 0; }}
"""
MAKEFILE = """objects := $(patsubst %.c,%.o,$(wildcard *.c))
all: program
program: $(objects)
\tcc -o $@ $^
%.o: %.c all.h
\tcc -O1 -c -o $@ $<
"""


class NotInstalled(OSError):
    """The machine lacks a program."""


def run_program(*words: str | Path, env: dict[str, str] | None = None, **options: Any) -> str:
    """Its output; OSError with the end of what it said if it fails or takes too long."""
    try:
        found = subprocess.run(
            [*map(str, words)], capture_output=True, text=True, check=False, timeout=PROGRAM_S_MAX, env=os.environ | (env or {}), **options
        )
    except FileNotFoundError as err:
        raise NotInstalled(f"{words[0]} is not installed") from err
    except subprocess.TimeoutExpired as err:
        raise OSError(f"{words[0]}: not within {PROGRAM_S_MAX} s") from err
    if found.returncode:
        raise OSError(f"{words[0]} ended with {found.returncode}: {(found.stderr or found.stdout).strip()[-200:]}")
    return found.stdout


def timed_program(count: float, *words: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> Measured:
    return timed(count, lambda: run_program(*words, env=env, cwd=cwd))


# --- git ------------------------------------------------------------------------------------------------------------------------
def repository(amounts: Amounts) -> tuple[Path, int]:
    """A bare repository with one commit of the source tree, made once for all targets, and the number of its files."""
    place = Path(tempfile.gettempdir()) / f"afs-bench-repository-{os.getpid()}-{amounts.files}"
    bare, tree = place / "tree.git", source_tree(amounts)
    if not bare.exists():
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        work = place / "work"
        work.mkdir(parents=True)
        with tarfile.open(tree) as tar:
            tar.extractall(work, filter="data")
        for words in (["init", "-q", "."], ["add", "."], ["commit", "-q", "-m", "tree"], ["clone", "-q", "--bare", ".", bare]):
            run_program("git", *words, env=GIT, cwd=work)
        shutil.rmtree(work)
    with tarfile.open(tree) as tar:
        return bare, len(tar.getnames())


def git_clone(folder: Path, amounts: Amounts) -> Measured:
    """Files; by git's own protocol, which writes one pack and the files."""
    bare, count = repository(amounts)
    return timed_program(count, "git", "clone", "-q", bare.as_uri(), folder / "clone", env=GIT)


def git_status(folder: Path, amounts: Amounts) -> Measured:
    """Files of the clone, whose names and attributes are all looked at."""
    _, count = repository(amounts)
    return timed_program(count, "git", "-C", folder / "clone", "status", "--porcelain", env=GIT)


# --- a build of C ---------------------------------------------------------------------------------------------------------------
def c_build(folder: Path, amounts: Amounts) -> Measured:
    """Units compiled and linked by two jobs; a unit takes the compiler some 30 ms."""
    count = max(amounts.files // 40, 10)
    place = folder / "build"
    place.mkdir(exist_ok=True)
    declarations = "\n".join(f"int work_{number}(struct row *rows, int count);" for number in range(count))
    (place / "all.h").write_text(HEADER.format(declarations=declarations))
    for number in range(count):
        (place / f"unit{number}.c").write_text(UNIT.format(n=number))
    (place / "main.c").write_text(MAIN.format(calls=" ".join(f"sum += work_{number}(rows, 8);" for number in range(count))))
    (place / "Makefile").write_text(MAKEFILE)
    done = timed_program(count, "make", "-s", "-j2", "-C", place)
    if not run_program(place / "program").strip().lstrip("-").isdigit():
        raise OSError("the program that was built says nonsense")
    return done


# --- fio ------------------------------------------------------------------------------------------------------------------------
def _fio(folder: Path, size_mib: int, *words: str) -> tuple[dict[str, Any], float]:
    began = time.perf_counter()
    common = ("--name=fio", f"--filename={folder / 'fio'}", f"--size={size_mib}M", "--output-format=json", "--randseed=1", "--thread")
    said = run_program("fio", *common, *words)
    took = time.perf_counter() - began
    return json.loads(said[said.index("{") :])["jobs"][0], took


def _fio_rate(job: dict[str, Any], took: float, kind: str, *, operations: bool) -> Measured:
    """Over the time of the job with its sync at the end, where it has one, without what fio itself takes to start."""
    if job["error"]:
        raise OSError(job["error"], "fio: " + os.strerror(job["error"]))
    count = job[kind]["total_ios"] if operations else job[kind]["io_bytes"] / (1 << 20)
    seconds = max(job["job_runtime"], job[kind]["runtime"]) / 1000
    return Measured(count, seconds or took)


def fio_write(folder: Path, amounts: Amounts) -> Measured:
    """MiB, 1 MiB each, with an fsync at the end."""
    job, took = _fio(folder, amounts.stream_mib, "--rw=write", "--bs=1M", "--ioengine=psync", "--end_fsync=1")
    return _fio_rate(job, took, "write", operations=False)


def fio_read(folder: Path, amounts: Amounts) -> Measured:
    """MiB, 1 MiB each."""
    job, took = _fio(folder, amounts.stream_mib, "--rw=read", "--bs=1M", "--ioengine=psync")
    return _fio_rate(job, took, "read", operations=False)


def fio_random_read(folder: Path, amounts: Amounts) -> Measured:
    """Operations of 4 KiB past the page cache, QUEUE at once."""
    return _fio_random(folder, amounts, "randread", "read")


def fio_random_write(folder: Path, amounts: Amounts) -> Measured:
    """Operations of 4 KiB past the page cache, QUEUE at once."""
    return _fio_random(folder, amounts, "randwrite", "write")


def _fio_random(folder: Path, amounts: Amounts, order: str, kind: str) -> Measured:
    amount = ("--bs=4k", f"--number_ios={4 * amounts.randoms}", "--norandommap=1")
    job, took = _fio(folder, amounts.stream_mib, f"--rw={order}", *amount, "--ioengine=libaio", f"--iodepth={QUEUE}", "--direct=1")
    return _fio_rate(job, took, kind, operations=True)


# --- PostgreSQL -----------------------------------------------------------------------------------------------------------------
def _postgres(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([*sorted(glob.glob(PLACES), reverse=True), os.environ.get("PATH", "")]))
    if found is None:
        raise NotInstalled(f"{name} is not installed (package postgresql)")
    return found


def let_through(folder: Path) -> None:
    """Another user may pass the directories above: those of benchmarks are made for their owner alone."""
    for place in folder.parents:
        mode = stat.S_IMODE(place.stat().st_mode)
        if not mode & stat.S_IXOTH:
            place.chmod(mode | stat.S_IXOTH)


def _as_postgres(place: Path) -> dict[str, Any]:
    """Options of a process that runs as the user `postgres`, whom its package makes: the server does not run as root."""
    try:
        user = pwd.getpwnam("postgres")
    except KeyError as err:
        raise NotInstalled("there is no user postgres (package postgresql)") from err
    os.chown(place, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": place}


@contextlib.contextmanager
def postgres_server(data: Path) -> Iterator[Sequence[str]]:
    """A server of its own over the database in `data`, with no port.  Gives the words by which its clients reach it."""
    sockets = Path(tempfile.mkdtemp(prefix="afs-bench-pg-"))
    server = None
    try:
        settings = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={sockets}", "-c", "shared_buffers=64MB")
        with (sockets / "log").open("w") as log:
            options = _as_postgres(sockets) | {"env": os.environ | {"LC_ALL": "C"}}
            server = subprocess.Popen([_postgres("postgres"), "-D", str(data), *settings], stdout=log, stderr=log, **options)
        reach = ("-h", str(sockets), "-U", "postgres")
        _await_server(server, reach, sockets / "log")
        yield reach
    finally:
        if server is not None:
            _end(server)
        shutil.rmtree(sockets, ignore_errors=True)


def _await_server(server: subprocess.Popen[bytes], reach: Sequence[str], log: Path) -> None:
    for _ in range(PROGRAM_S_MAX * 10):
        if server.poll() is not None:
            raise OSError(f"postgres ended with {server.returncode}: {log.read_text(errors='replace')[-200:]}")
        if subprocess.run([_postgres("pg_isready"), "-q", *reach], check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise OSError(f"postgres: not ready within {PROGRAM_S_MAX} s")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)  # clients are cut off, and what is there is written
    try:
        server.wait(PROGRAM_S_MAX)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def make_postgres(folder: Path, amounts: Amounts) -> None:
    """The database of `postgres_transactions`: some 40 MiB."""
    data = folder / "postgres"
    data.mkdir()
    let_through(data)
    run_program(_postgres("initdb"), "-D", data, "-A", "trust", "-E", "UTF8", env={"LC_ALL": "C"}, **_as_postgres(data))
    with postgres_server(data) as reach:
        run_program(_postgres("pgbench"), *reach, "-i", "-q", "-s", "2", "postgres")


def postgres_transactions(folder: Path, amounts: Amounts) -> Measured:
    """Transactions of pgbench (TPC-B's kind), each durable, by CLIENTS clients; after `make_postgres`."""
    each = max(amounts.syncs // CLIENTS, 10)
    with postgres_server(folder / "postgres") as reach:
        clients = ("-c", str(CLIENTS), "-j", "2", "-n")
        return timed_program(CLIENTS * each, _postgres("pgbench"), *reach, *clients, "-t", str(each), "postgres")


PROGRAMS: list[Row] = [
    ("git clone", "files/s", git_clone, ""),
    ("git status, cold", "files/s", git_status, "cold"),
    ("build of C by make -j2", "units/s", c_build, ""),
    ("fio: 1 MiB sequential write + fsync", "MiB/s", fio_write, "settled"),
    ("fio: 1 MiB sequential read, cold", "MiB/s", fio_read, "cold"),
    ("fio: random 4 KiB read, direct, 16 in flight", "/s", fio_random_read, "cold"),
    ("fio: random 4 KiB write, direct, 16 in flight", "/s", fio_random_write, "settled"),
    ("PostgreSQL transaction, 4 clients", "/s", postgres_transactions, make_postgres),
]
