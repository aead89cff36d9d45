"""The check that this build works on this host, without a cluster: `awsomefsd self-check`.

Each check does a small thing of the kind that nodes do, and compares the result with the right one; that a library can be imported is not
enough (stripping has silently broken one).  A finding is "ok", "bad" (this host cannot serve) or "off" (an option that is missing here).
The FUSE level is the kernel's own: a connection is mounted in a temporary directory, its INIT request read, and it is unmounted.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import resource
import selectors
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from awsomefsd.fuse import abi, negotiate
from awsomefsd.keeper import mount_syscalls

OK, BAD, OFF = "ok", "bad", "off"
KERNEL_MIN = (5, 14)
FILES_MIN = 65_536  # descriptors: about one for each connection and segment in use
INIT_S_MAX = 10.0
DEV_FUSE = "/dev/fuse"
INIT_BYTES_MAX = 1 << 20
_TIMEX_BYTES = 1_024  # struct timex has 208
_TIME_ERROR = 5


class CheckResult(NamedTuple):
    name: str
    state: str
    detail: str


def run() -> list[CheckResult]:
    """Runs every check and returns the results; one that fails does not keep the others from running."""
    checks: list[tuple[str, Callable[[], CheckResult]]] = [("asserts", _asserts)]
    checks += [(name, lambda name=name, check=check: _library(name, check)) for name, check in _LIBRARIES.items()]  # type: ignore[misc]
    checks += [("kernel", _kernel), ("memory files", _memory_files), ("descriptors", _descriptors), ("clock", _clock)]
    found = []
    for name, check in checks:
        try:
            found.append(check())
        except Exception as err:
            found.append(CheckResult(name, BAD, f"{type(err).__name__}: {err}"))
    return found + _fuse() + [_pyfuse3(), _loop()]


def asserts_on() -> bool:
    """Returns True if this process checks asserts (it runs without -O)."""
    try:
        assert not KERNEL_MIN
    except AssertionError:
        return True
    return False


def _asserts() -> CheckResult:
    if asserts_on():
        return CheckResult("asserts", OK, "on")
    return CheckResult("asserts", BAD, "off: built or started with -O; no invariant is checked")


# --- libraries ---------------------------------------------------------------------------------------------------------------


def _crc32c(library: Any) -> None:
    assert library.crc32c(b"123456789") == 0xE3069283


def _xxhash(library: Any) -> None:
    assert library.xxh3_64_intdigest(b"") == 0x2D06800538D394C2


def _msgspec(library: Any) -> None:
    value = {"a": [1, b"b", None]}
    assert library.msgpack.decode(library.msgpack.encode(value)) == value


def _lmdb(library: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="awsomefsd-self-check-") as directory:
        environment = library.open(directory, map_size=1 << 20)
        try:
            with environment.begin(write=True) as txn:
                txn.put(b"k", b"v")
            with environment.begin() as txn:
                assert txn.get(b"k") == b"v"
        finally:
            environment.close()


def _protobuf(library: Any) -> None:
    from google.protobuf.internal import api_implementation

    message = library.Volume(name="n")
    assert library.Volume.FromString(message.SerializeToString()).name == "n"
    kind = api_implementation.Type()
    assert kind == "upb", f"protobuf runs as {kind}, not in C"


def _grpc(library: Any) -> None:
    """Makes a call over a socket of this process."""
    from concurrent.futures import ThreadPoolExecutor

    with tempfile.TemporaryDirectory(prefix="awsomefsd-self-check-") as directory:
        server = library.server(ThreadPoolExecutor(1))
        handler = library.unary_unary_rpc_method_handler(lambda request, _: request[::-1])
        server.add_registered_method_handlers("check", {"Turn": handler})
        server.add_generic_rpc_handlers((library.method_handlers_generic_handler("check", {"Turn": handler}),))
        server.add_insecure_port(f"unix:{directory}/s")
        server.start()
        try:
            with library.insecure_channel(f"unix:{directory}/s") as channel:
                assert channel.unary_unary("/check/Turn")(b"ab", timeout=30) == b"ba"
        finally:
            server.stop(None).wait(30)


def _trio(library: Any) -> None:
    async def main() -> int:
        return int(await library.to_thread.run_sync(lambda: 7))

    assert library.run(main) == 7


def _config(library: Any) -> None:
    assert str(library.load(None).run_dir)


def _ssl(library: Any) -> None:
    context = library.create_default_context()
    context.minimum_version = library.TLSVersion.TLSv1_3
    assert library.HAS_TLSv1_3 and context.minimum_version == library.TLSVersion.TLSv1_3


def _prometheus(library: Any) -> None:
    registry = library.CollectorRegistry()
    library.Counter("a", "b", registry=registry).inc()
    assert b"a_total 1.0" in library.generate_latest(registry)


def _page_files(files: Any) -> None:
    assert all(content for _kind, content in files.files().values())


_LIBRARIES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "checksums (crc32c)": ("crc32c", _crc32c),
    "hashes (xxhash)": ("xxhash", _xxhash),
    "messages (msgspec)": ("msgspec", _msgspec),
    "store (LMDB)": ("lmdb", _lmdb),
    "admin API (protobuf)": ("awsomefsd.admin.pb.admin_pb2", _protobuf),
    "admin API (gRPC)": ("grpc", _grpc),
    "daemon (trio)": ("trio", _trio),
    "configuration (pydantic, YAML)": ("awsomefsd.config.settings", _config),
    "connections of voters (TLS)": ("ssl", _ssl),
    "metrics (prometheus_client)": ("prometheus_client", _prometheus),
    "web page (its files)": ("awsomefsd.ui.files", _page_files),
}


def _library(name: str, what: tuple[str, Callable[[Any], None]]) -> CheckResult:
    began = time.monotonic()
    library = importlib.import_module(what[0])
    what[1](library)
    version = getattr(library, "__version__", "")
    return CheckResult(name, OK, f"{version + ', ' if version else ''}{(time.monotonic() - began) * 1000:.0f} ms")


def _pyfuse3() -> CheckResult:
    try:
        version = importlib.import_module("pyfuse3").__version__
    except ImportError as err:
        return CheckResult("adapter for libfuse (pyfuse3)", OFF, f"`mount-pyfuse3` does not run here: {err}")
    return CheckResult("adapter for libfuse (pyfuse3)", OK, version)


# --- host --------------------------------------------------------------------------------------------------------------------


def _kernel() -> CheckResult:
    release = platform.release()
    numbers = tuple(int(word) for word in release.partition("-")[0].split(".")[:2])
    return CheckResult(
        "kernel", OK if numbers >= KERNEL_MIN else BAD, f"Linux {release}; {KERNEL_MIN[0]}.{KERNEL_MIN[1]} or later is needed"
    )


def _memory_files() -> CheckResult:
    fd = os.memfd_create("awsomefsd-self-check")
    try:
        os.truncate(fd, 4096)
        os.close(os.pidfd_open(os.getpid()))
    finally:
        os.close(fd)
    return CheckResult("memory files", OK, "memfd and pidfd")


def _descriptors() -> CheckResult:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= FILES_MIN
    return CheckResult(
        "descriptors", OK if enough else OFF, f"{soft} of {hard} files may be open; {FILES_MIN} are recommended (LimitNOFILE)"
    )


def _clock() -> CheckResult:
    first, second = time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert first <= second, "CLOCK_BOOTTIME went back"
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state in (-1, _TIME_ERROR):
        return CheckResult("clock", OFF, "the wall clock is not synchronised, so time stamps may be wrong; set up NTP")
    return CheckResult("clock", OK, "the wall clock is synchronised")


def _loop() -> CheckResult:
    there = os.path.exists("/dev/loop-control")
    return CheckResult(
        "loop devices", OK if there else OFF, "there" if there else "no loop devices: only a file itself can be added as a device"
    )


# --- FUSE --------------------------------------------------------------------------------------------------------------------

_OPTIONAL = (
    ("FUSE: requests again (RESEND)", lambda offer: bool(offer.flags & abi.HAS_RESEND), "Linux 6.9, FUSE 7.40"),
    ("FUSE: names invalid at once (INC_EPOCH)", lambda offer: offer.minor >= 44, "FUSE 7.44"),
)


def _fuse() -> list[CheckResult]:
    if not os.path.exists(DEV_FUSE):
        return [CheckResult("FUSE", BAD, f"{DEV_FUSE} is missing: modprobe fuse")]
    if os.geteuid() != 0:
        return [CheckResult("FUSE", OFF, "not checked: only root may mount")]
    try:
        offer = kernel_offer()
    except (OSError, ValueError) as err:
        return [CheckResult("FUSE", BAD, f"a mount on a temporary directory failed: {err}")]
    enough = (offer.major, offer.minor) >= (abi.KERNEL_MAJOR, abi.MINOR_MIN)
    found = [CheckResult("FUSE", OK if enough else BAD, f"{offer.major}.{offer.minor}; {abi.KERNEL_MAJOR}.{abi.MINOR_MIN} is needed")]
    return found + [CheckResult(name, OK if has(offer) else OFF, f"from {since} on") for name, has, since in _OPTIONAL]


def kernel_offer() -> negotiate.Offer:
    """Returns the FUSE_INIT request of this kernel.

    The connection never answers and is closed, which ends it.  Raises OSError, TimeoutError.
    """
    fd = os.open(DEV_FUSE, os.O_RDWR | os.O_CLOEXEC)
    try:
        with tempfile.TemporaryDirectory(prefix="awsomefsd-self-check-") as directory:
            mount_syscalls.mount_fuse(fd, directory, "self-check", ["nosuid", "nodev"], "")
            try:
                with selectors.DefaultSelector() as ready:
                    ready.register(fd, selectors.EVENT_READ)
                    if not ready.select(INIT_S_MAX):
                        raise TimeoutError("the kernel sent no FUSE_INIT")
                request = os.read(fd, INIT_BYTES_MAX)
            finally:
                mount_syscalls.umount(directory, mount_syscalls.MNT_DETACH | mount_syscalls.UMOUNT_NOFOLLOW)
        return negotiate.read_offer(memoryview(request)[abi.IN_HEADER.size :])
    finally:
        os.close(fd)
