"""What all tests share: the seed, the figures printed at the end, nodes that never outlive their test, bounded leftovers of descriptors."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from _pytest.logging import caplog_records_key

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from awsomefsd.meta.state import invariants  # noqa: E402
from buildtools import cluster, netns  # noqa: E402
from buildtools.cluster import Cluster  # noqa: E402
from buildtools.nodes import Node  # noqa: E402
from buildtools.say import BuildError  # noqa: E402

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # its handlers abort children of tests that fork after others have used gRPC

invariants.ASSERTED = True  # of what runs in this process; the nodes that tests start are as installed ones

_given = os.environ.get("AWSOMEFSD_SEED") or str(random.SystemRandom().randrange(1 << 20))
if not _given.isdecimal():
    raise pytest.UsageError(f"AWSOMEFSD_SEED={_given}: give the number that a run has printed, as in AWSOMEFSD_SEED=4711")
SEED = int(_given)
PREFIX, OWNER = "afs-", ".test-run"
_figures: list[str] = []
_nodes: list[Node | Cluster] = []  # those that live
LOG_TAIL_CHARS = 30_000
DESCRIPTORS_LEFT_MAX = 36  # by one module: gRPC and others keep some for the process
COLLECTIONS_MAX = 50


def _identity(pid: int) -> str:
    """A process as nobody else can be: its pid and when it started; the pid alone if it is gone."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return f"{pid}"


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: fixtures clean up.  What a run that was killed has left is removed by the next one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for found in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = found / OWNER
        with contextlib.suppress(OSError, BuildError):  # another run removes it at the same time, or has a mount there that ends
            run = owner.read_text()
            if owner.stat().st_uid == os.geteuid() and run != _identity(int(run.split()[0])):
                _destroy(_found_again(owner.parent))


def pytest_report_header() -> str:
    return f"seed {SEED} (python3 build.py test --seed {SEED} replays the random tests)"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    for records in item.stash.get(caplog_records_key, {}).values():
        for record in records:  # kept until all of the test is torn down, with every mount that the frames of a logged error know
            record.msg, record.args, record.exc_info = record.getMessage(), (), None
    if report.failed:
        report.sections.append(("seed", f"python3 build.py test --seed {SEED} {item.nodeid!r}"))
        report.sections += [section for node in _all_nodes() for section in _logs(node)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures")
        for row in _figures:
            terminalreporter.write_line(row)


@pytest.fixture
def seed() -> int:
    """The seed of this run; a failing test shows how to replay it."""
    return SEED


@pytest.fixture
def figures() -> list[str]:
    """Lines appended here are printed at the end of the run, passed or failed."""
    return _figures


def _descriptors() -> Counter[str]:
    """What this process has open, by kind: numbers in names do not count."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[re.sub(r"\d+", "N", os.readlink(f"/proc/self/fd/{fd}"))] += 1
    return found


@pytest.fixture(scope="module", autouse=True)
def _few_descriptors_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """All modules run in one process: descriptors that one leaves are missing in a later one.  A mapping of a memfd holds its own
    descriptor until it is collected, so garbage is collected before anything is blamed."""
    before = _descriptors()
    yield
    for _ in range(COLLECTIONS_MAX):  # one that another thread runs makes ours return at once
        if _descriptors().total() - before.total() <= DESCRIPTORS_LEFT_MAX:
            break
        gc.collect()
        time.sleep(0.1)
    now = _descriptors()
    left = now.total() - before.total()
    assert left <= DESCRIPTORS_LEFT_MAX, f"{request.node.nodeid} left {left} descriptors open: {(now - before).most_common(8)}"


def missing_for_mounts() -> str:
    """Why no mount can be made here, "" if one can."""
    if os.geteuid() != 0:
        return "needs root to mount"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse (modprobe fuse)"
    return ""


def missing_for_namespaces() -> str:
    """Why no network of nodes can be made here, "" if one can."""
    return missing_for_mounts() or netns.missing()


MakeNode = Callable[..., Node]
MakeCluster = Callable[..., Cluster]


def _all_nodes() -> list[Node]:
    return [node for made in _nodes for node in (made.nodes if isinstance(made, Cluster) else [made])]


def _found_again(directory: Path) -> Node | Cluster:
    return Cluster(directory) if (directory / cluster.MARKER).exists() else Node(directory)


def _destroy(node: Node | Cluster) -> None:
    """End the node; the directory goes with it.  What fails here is an error of the test."""
    if (node.directory / ".awsomefs-node").exists() or (node.directory / cluster.MARKER).exists():
        node.destroy()
    shutil.rmtree(node.directory, ignore_errors=True)


def _logs(node: Node) -> list[tuple[str, str]]:
    """The ends of a node's logs, for the report of a failed test: the node itself is gone when somebody reads it."""
    paths = sorted(node.log.glob("*"))
    return [(f"{path.name} of {node.directory.name}", path.read_text(errors="replace")[-LOG_TAIL_CHARS:]) for path in paths]


@pytest.fixture(scope="module")
def make_node() -> Iterator[MakeNode]:
    """Makes running, mounted nodes in directories of their own; all are destroyed when the module ends, by their own marks only."""
    yield from making_nodes()


def making_nodes() -> Iterator[MakeNode]:
    """For fixtures of other scopes too."""
    why = missing_for_mounts()
    if why:
        pytest.skip(why)
    nodes: list[Node] = []

    def make(*, up: bool = True, **kwargs: object) -> Node:
        node = Node(Path(tempfile.mkdtemp(prefix=PREFIX)), **({"size_bytes": 2 << 30} | kwargs))  # type: ignore[arg-type]
        nodes.append(node)
        _nodes.append(node)
        node.prepare()
        (node.directory / OWNER).write_text(_identity(os.getpid()))
        if up:
            node.up()
        return node

    yield make
    _destroy_all(nodes)


def _destroy_all(made: Sequence[Node | Cluster]) -> None:
    problems = []
    for node in made:
        _nodes.remove(node)
        try:
            _destroy(node)
        except Exception as err:
            problems.append(f"{node.directory}: {err}")
    assert not problems, problems


@pytest.fixture(scope="module")
def make_cluster() -> Iterator[MakeCluster]:
    """Makes prepared clusters (buildtools/cluster.py): each node in a network namespace, none started; all are destroyed at the end."""
    yield from making_clusters()


def making_clusters() -> Iterator[MakeCluster]:
    """For fixtures of other scopes too."""
    why = missing_for_namespaces()
    if why:
        pytest.skip(why)
    clusters: list[Cluster] = []

    def make(count: int = 3, **kwargs: object) -> Cluster:
        made = Cluster(Path(tempfile.mkdtemp(prefix=PREFIX)), count, **({"size_bytes": 1 << 30} | kwargs))  # type: ignore[arg-type]
        clusters.append(made)
        _nodes.append(made)
        made.directory.joinpath(cluster.MARKER).touch()
        made.directory.joinpath(OWNER).write_text(_identity(os.getpid()))
        made.prepare()
        return made

    try:
        yield make
    finally:  # a context manager is left by what failed in it
        _destroy_all(clusters)
