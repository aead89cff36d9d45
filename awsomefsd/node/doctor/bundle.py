"""The bundle of the doctor: one .tar.gz with findings, states, configuration and logs of this node, for whoever helps.

No secret is in it.  Files of keys and tokens are not read into it at all; the configuration is that which is in force, where a secret
prints as stars.  Everything else, logs and answers alike, goes through `Redaction`: what this node itself holds as secret (keys, tokens) is
replaced wherever it stands, also a line of it, and so is everything of the shape of a token or a private key, since a secret of another
node may be in a log.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import platform
import re
import stat
import subprocess
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from awsomefsd import __version__
from awsomefsd.config.settings import Settings, key_paths
from awsomefsd.keeper import mount_syscalls
from awsomefsd.node.doctor import host
from awsomefsd.node.doctor.examine import Answers
from awsomefsd.node.health.codes import CODES, HealthFinding

LOG_BYTES_MAX = 4 << 20  # of each file, its end
UNPACKED_BYTES_MAX = 256 << 20  # of a compressed one, that are looked at to find its end
LOGS_MAX = 64
SECRET_BYTES_MAX = 1 << 20
JOURNAL_LINES, JOURNAL_S = 20_000, 20
PACKAGED_LOGS = Path("/var/log/awsomefsd")
_UNITS = ("awsomefsd", "awsomefsd-keeper", "awsomefsd-segments")
_PART_MIN = 12  # characters of a line or word that is a secret by itself
_OURS = re.compile(r"(awsomefsd|daemon|keeper|forker|segments|supervise|worker-[0-9a-f]+)[-0-9a-z.]*\.log(\.[0-9]+)?(\.gz)?")
_HIDDEN = b"[hidden]"
_SHAPES = re.compile(
    rb"[Aa][Ff][Ss][0-9]{1,4}-[A-Za-z0-9]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)


class Redaction:
    """Replaces secrets in bytes."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        parts: set[bytes] = set()
        for secret in secrets:
            rows = [row.strip() for row in secret.splitlines() if not row.startswith(b"-----")]
            parts.update(word for row in [*rows, b"".join(rows)] for word in (row, *row.split(b"-")) if len(word) >= _PART_MIN)
        self._parts = re.compile(b"|".join(re.escape(part) for part in sorted(parts, key=len, reverse=True))) if parts else None

    def __call__(self, raw: bytes) -> bytes:
        raw = _SHAPES.sub(_HIDDEN, raw)
        return self._parts.sub(_HIDDEN, raw) if self._parts is not None else raw


def secrets_of(settings: Settings) -> Iterator[bytes]:
    """Yields what this node holds as secret: the contents of its files of keys and tokens, and the token of the configuration."""
    if token := settings.token.get_secret_value():
        yield token.encode()
    for path in host.secret_files(settings):
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # one that is a pipe is not waited for
            with os.fdopen(fd, "rb") as file:
                yield file.read(SECRET_BYTES_MAX) or b""


def write(target: Path, settings: Settings, found: Sequence[HealthFinding], answers: Answers) -> int:
    """Writes a new file that its owner alone may read, and returns the number of files in it.

    Raises OSError; FileExistsError if it is there.
    """
    redact = Redaction(secrets_of(settings))
    count = 0
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, raw in contents(settings, found, answers):
            clean = redact(raw)
            member = tarfile.TarInfo(f"awsomefsd-doctor/{name}")
            member.size, member.mtime, member.mode = len(clean), int(time.time()), 0o600
            archive.addfile(member, io.BytesIO(clean))
            count += 1
    return count


def contents(settings: Settings, found: Sequence[HealthFinding], answers: Answers) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of each file, before redaction."""
    rows = [{"code": one.code, "severity": one.severity, "what": CODES[one.code].says, "evidence": one.what} for one in found]
    yield "findings.json", _json(rows)
    yield "status.json", _json(answers.status if answers.status is not None else {"trouble": answers.trouble})
    yield "nodes.json", _json(answers.nodes)
    yield "configuration.txt", "".join(f"{'.'.join(path)} = {value_of(settings, path)}\n" for path in key_paths()).encode()
    yield "host.txt", "".join(_host()).encode(errors="surrogateescape")
    yield "state_dir.txt", "".join(_listing(settings.state_dir)).encode(errors="surrogateescape")
    local = not host.on_network(host.mounted_at(settings.state_dir))
    for name in ("node.json", "endpoints.json", "mounts.json") if local else ():
        with suppress(OSError):
            yield f"state/{name}", (settings.state_dir / name).read_bytes()
    for number, path in enumerate(log_files(settings, answers.pids)):
        with suppress(OSError):
            yield f"logs/{number:02}-{path.name.removesuffix('.gz')}", _end_of(path)
    if journal := _journal():
        yield "logs/journal.txt", journal


def value_of(settings: Settings, path: tuple[str, ...]) -> Any:
    value: Any = settings
    for part in path:
        value = getattr(value, part)
    return value


def log_files(settings: Settings, pids: Iterable[int]) -> list[Path]:
    """Returns the logs of this node's processes: where they usually are, what the processes `pids` write to, and what is in the
    directories for logs that keeper and supervisor were given.

    Beside such a file, and in such a directory, only those with names of ours are taken: the logs of everybody may be there.
    """
    places = {settings.state_dir / "log", settings.run_dir / "log", PACKAGED_LOGS}
    written = {target for pid in pids for descriptor in (1, 2) if (target := _written_by(pid, descriptor)) is not None}
    found: set[tuple[float, Path]] = set()
    beside = {target.parent for target in written} | set(_given(settings.run_dir))
    for place in {place for place in places | beside if not host.on_network(host.mounted_at(place))}:
        with suppress(OSError):
            for path in place.iterdir():
                ours = _OURS.fullmatch(path.name) or path in written
                if (ours or (place in places and ".log" in path.name)) and stat.S_ISREG((state := path.lstat()).st_mode):
                    found.add((state.st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)[:LOGS_MAX]]


def _given(run_dir: Path) -> Iterator[Path]:
    """Yields each --log-dir of the keepers and supervisors that serve a run directory, whether they answer or not.

    Processes of its owner and of root alone are looked at: everybody may call a process so.
    """
    with suppress(OSError):
        owners = {0, run_dir.stat().st_uid}
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                words = [os.fsdecode(word) for word in Path("/proc", name, "cmdline").read_bytes().split(b"\0")]
                options = dict(pairwise(words))
                ours = {"keeper", "supervise"} & {*words} and options.get("--run-dir") == str(run_dir)
                if ours and os.path.isabs(place := options.get("--log-dir", "")) and os.stat(f"/proc/{name}").st_uid in owners:
                    yield Path(place)


def _written_by(pid: int, descriptor: int) -> Path | None:
    with suppress(OSError):
        target = Path(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        return target if target.suffix == ".log" else None
    return None


def _end_of(path: Path) -> bytes:
    """Returns the end of a log from a whole line on: half a secret would not be recognised, and in a compressed one none would be.

    Raises OSError for what is no regular file now: whoever may write in its directory could have put a link or a pipe there.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        if path.suffix == ".gz":
            return _end_of_compressed(file, path)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - LOG_BYTES_MAX, 0))
        raw = file.read(LOG_BYTES_MAX)
    return raw if size <= LOG_BYTES_MAX else raw.partition(b"\n")[2]


def _end_of_compressed(file: IO[bytes], path: Path) -> bytes:
    kept, size = b"", 0
    try:
        with gzip.open(file) as plain:
            while size < UNPACKED_BYTES_MAX and (piece := plain.read(LOG_BYTES_MAX)):
                size += len(piece)
                kept = (kept + piece)[-LOG_BYTES_MAX:]
    except (EOFError, zlib.error) as err:
        raise OSError(errno.EINVAL, f"damaged: {err}", str(path)) from None
    return kept if size <= LOG_BYTES_MAX else kept.partition(b"\n")[2]


def _journal() -> bytes:
    """Returns the end of the journals of our units; empty without systemd."""
    words = ["journalctl", "--no-pager", "-q", "-n", str(JOURNAL_LINES), *(word for unit in _UNITS for word in ("-u", unit))]
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(words, capture_output=True, timeout=JOURNAL_S, check=False).stdout
    return b""


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="surrogateescape")


def _host() -> Iterator[str]:
    yield f"awsomefsd {__version__}\n{' '.join(platform.uname())}\n\n"
    for path in ("/etc/os-release", "/proc/meminfo", "/proc/loadavg", "/proc/self/limits", "/proc/self/net/dev"):
        with suppress(OSError):
            yield f"--- {path}\n{Path(path).read_text(errors='replace')}\n"
    yield "--- mounts of awsomefsd, and that of /\n"
    for entry in mount_syscalls.mounts():
        if entry.fstype == mount_syscalls.FSTYPE or entry.dir == "/":
            yield f"{entry.dir} {entry.fstype} {entry.device} {entry.options} {entry.super_options}\n"


def _listing(directory: Path) -> Iterator[str]:
    """Yields names, sizes and modes of the state directory; of no file the content."""
    if host.on_network(host.mounted_at(directory)):
        yield "on a network filesystem, which may hang\n"
        return
    for parent, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            path = Path(parent, name)
            with suppress(OSError):
                state = path.lstat()
                yield f"{stat.filemode(state.st_mode)} {state.st_uid} {state.st_gid} {state.st_size:>12} {path.relative_to(directory)}\n"
