"""A node adds, checks, changes and forgets stores: on a real machine of rows, and at real stores that are worked at in this process.

The work may be ended at each step, by a kill of the child or of the daemon; then the same command goes on, on the same node or another.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import AlreadyExists, ConfigError, FsError, NotFound, Refused, Unavailable
from awsomefsd.base.levels import UNFINISHED_VARIABLE
from awsomefsd.base.rule_levels import STORES
from awsomefsd.base.types import KEPT, OF_ROLE, STORE_ACTIVE, STORE_ADDING, StoreInfo
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.queries import answer
from awsomefsd.node import store_child
from awsomefsd.node.store_child import _error, run
from awsomefsd.node.stores import StoreAsked, StoreCatalog
from awsomefsd.tier import store_work
from awsomefsd.tier.credentials import Credentials
from awsomefsd.tier.object_format import Marker, pack_marker
from awsomefsd.tier.store_secret import unveil
from awsomefsd.tier.store_work import CHECK, CLAIM, Job
from tests.rigs.machine_driver import Drive, sound
from tests.rigs.strict_store import KEY_ID, SECRET, StrictStore, strict_store

CLUSTER, OTHER = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
KEYS = Credentials(KEY_ID, SECRET)
LARGE = 300_000
STAYS = """
import sys, time
from awsomefsd.cli import main
from awsomefsd.tier import store_work

run = store_work.run

def staying(raw, tell):
    def told(line):
        tell(line)
        if line.get("finding", {}).get("tried") == "put":
            time.sleep(600)
    run(raw, told)

store_work.run = staying
sys.exit(main.run(["store-work"]))
"""
HANGS = "import time; print('{\"finding\": {\"tried\": \"hangs\"}}', flush=True); time.sleep(600)"


class Killed(BaseException):
    """The daemon ends here."""


class World:
    """A cluster's rows, and a node that works at stores in this process.  `killed_at`: counts proposals and jobs, before and after."""

    def __init__(self, level: int = STORES) -> None:
        self.drive = Drive(device=False, level=level)
        self.acts_at = level
        self.steps, self.killed_at = 0, -1
        self.jobs: list[Job] = []
        self.stores = StoreCatalog(self, CLUSTER, self.run)  # type: ignore[arg-type]

    def level(self) -> int:
        return self.acts_at

    def ask(self, body: Any) -> Any:
        return self._judged(answer(self.drive.machine, body))

    def propose(self, command: Any) -> Any:
        self._step()
        reply = self.drive.apply(command)
        self._step()
        return self._judged(reply)

    def run(self, job: Job, _leave: Any) -> Generator[dict[str, Any], None, dict[str, Any]]:
        self._step()
        self.jobs.append(job)
        lines: list[dict[str, Any]] = []
        store_work.run(store_work.packed(replace(job, large_bytes=LARGE)), lines.append)
        self._step()
        for line in lines:
            if "finding" in line:
                yield line["finding"]
            elif "error" in line:
                raise _error(line["error"]["kind"], line["error"]["words"])
        return dict(lines[-1]["done"])

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.killed_at:
            raise Killed

    @staticmethod
    def _judged(reply: Any) -> Any:
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply


def end(work: Generator[Any, None, Any]) -> tuple[list[Any], Any]:
    findings: list[Any] = []
    try:
        while True:
            findings.append(next(work))
    except StopIteration as ended:
        return findings, ended.value


def added(world: World, name: str, url: str, **asked: Any) -> StoreInfo:
    made: StoreInfo = end(world.stores.add(name, url, StoreAsked(**asked), _stay))[1]
    return made


def _stay(_end: Any) -> None:
    pass


@pytest.fixture(autouse=True)
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNFINISHED_VARIABLE, "1")


@pytest.fixture
def server() -> Iterator[StrictStore]:
    pytest.importorskip("obstore", reason="the library for buckets is not installed: pip install 'awsomefsd[store]'")
    with strict_store() as made:
        yield made


def names_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


# --- add -------------------------------------------------------------------------------------------------------------------
def test_a_bucket_is_added_with_its_keys_and_another_node_can_use_them(server: StrictStore) -> None:
    world = World()
    findings, made = end(world.stores.add("cold", "s3://bucket/p/", StoreAsked(endpoint=server.endpoint, keys=KEYS, sealed=True), _stay))
    assert {one["level"] for one in findings} == {"ok"} and len(findings) == 8
    assert (made.url, made.state, made.era_number, made.options.credentials) == ("s3://bucket/p", STORE_ACTIVE, 1, KEPT)
    assert sorted(server.objects) == [f"p/{CLUSTER}/e/1", "p/awsomefs"]
    other = StoreCatalog(world, CLUSTER, world.run)  # type: ignore[arg-type]
    findings, _ = end(other.check("cold", _stay))
    assert findings and {one["level"] for one in findings} == {"ok"} and world.jobs[-1].keys == KEYS and world.jobs[-1].owned
    secret = unveil(world.drive.machine.state.read(_secret_key(made), _secret_row()).secret)
    assert secret.keys == KEYS and len(secret.segments_key) == 32 and secret.key_id == 1
    sound(world.drive)


def _secret_key(info: StoreInfo) -> bytes:
    from awsomefsd.meta.state import keys

    return keys.store_secret(info.store)


def _secret_row() -> Any:
    from awsomefsd.meta.state import rows

    return rows.STORE_SECRET


def test_a_directory_is_added(tmp_path: Path) -> None:
    world = World()
    made = added(world, "nas", str(tmp_path))
    assert (made.url, made.options.credentials, made.has_secret) == (f"file://{tmp_path}", "", False)
    assert names_in(tmp_path) == [f"{CLUSTER}/e/1", "awsomefs"]
    with pytest.raises(AlreadyExists, match="exists already"):
        added(world, "nas", str(tmp_path))
    with pytest.raises(AlreadyExists, match="store nas is at this URL"):
        added(world, "again", str(tmp_path))


def test_a_kill_at_each_step_and_the_same_command_again(tmp_path: Path) -> None:
    whole = World()
    (tmp_path / "whole").mkdir()
    added(whole, "nas", str(tmp_path / "whole"))
    assert whole.steps == 8, "check, the row, the objects, ready: before and after each"
    for step in range(1, whole.steps + 1):
        place = tmp_path / str(step)
        place.mkdir()
        world = World()
        world.killed_at = step
        with pytest.raises(Killed):
            added(world, "nas", str(place))
        known = world.stores.all()
        if step == whole.steps:
            assert [one.state for one in known] == [STORE_ACTIVE]
            continue
        assert [one.state for one in known] == ([STORE_ADDING] if step > 3 else [])
        made = end(StoreCatalog(world, CLUSTER, world.run).add("nas", str(place), StoreAsked(), _stay))[1]  # type: ignore[arg-type]
        assert (made.state, made.era_number) == (STORE_ACTIVE, 1) and names_in(place) == [f"{CLUSTER}/e/1", "awsomefs"]
        assert not known or known[0].era == made.era
        sound(world.drive)


def test_what_was_begun_may_be_forgotten_and_begun_with_other_keys(server: StrictStore) -> None:
    world = World()
    world.killed_at = 5  # known, and nothing put
    with pytest.raises(Killed):
        added(world, "cold", "s3://bucket/p", endpoint=server.endpoint, keys=KEYS, sealed=True)
    [known] = world.stores.all()
    sealed_with = unveil(world.drive.machine.state.read(_secret_key(known), _secret_row()).secret).segments_key
    assert not server.objects
    server.keys = {"AKNEWKEY": "another-secret-of-it"}
    new = Credentials("AKNEWKEY", "another-secret-of-it")
    made = added(world, "cold", "s3://bucket/p", endpoint=server.endpoint, keys=new, sealed=True)
    secret = unveil(world.drive.machine.state.read(_secret_key(made), _secret_row()).secret)
    assert secret.segments_key == sealed_with and secret.keys == new
    world.killed_at = world.steps + 5
    with pytest.raises(Killed):
        added(world, "other", "s3://bucket/q", endpoint=server.endpoint, keys=new)
    world.stores.detach("other")
    assert [one.name for one in world.stores.all()] == ["cold"]


def test_a_prefix_of_another_cluster_or_of_somebody_else_is_refused(tmp_path: Path) -> None:
    world = World()
    (tmp_path / "awsomefs").write_bytes(pack_marker(Marker(store_work.UUID(OTHER), 7)))
    with pytest.raises(Refused, match=f"belongs to cluster {OTHER}; give another prefix.*nothing was added"):
        added(world, "nas", str(tmp_path))
    (tmp_path / "awsomefs").write_bytes(b"a file of somebody")
    with pytest.raises(Refused, match="no marker of awsomefs"):
        added(world, "nas", str(tmp_path))
    assert world.stores.all() == [] and names_in(tmp_path) == ["awsomefs"]
    assert (tmp_path / "awsomefs").read_bytes() == b"a file of somebody"


def test_a_prefix_that_this_cluster_had_before_begins_another_era(tmp_path: Path) -> None:
    world = World()
    first = added(world, "nas", str(tmp_path))
    world.stores.detach("nas")
    again = added(world, "new", str(tmp_path))
    assert (first.era_number, again.era_number) == (1, 2) and first.era != again.era
    assert names_in(tmp_path) == [f"{CLUSTER}/e/1", f"{CLUSTER}/e/2", "awsomefs"]


def test_of_two_clusters_that_take_one_place_the_second_is_refused(tmp_path: Path) -> None:
    """The other one comes between the check and the marker."""
    world, other = World(), World()
    other.stores = StoreCatalog(other, OTHER, other.run)  # type: ignore[arg-type]
    whole = world.run

    def raced(job: Job, leave: Any) -> Any:
        if job.work == CLAIM:
            added(other, "theirs", str(tmp_path))
        return (yield from whole(job, leave))

    world.stores = StoreCatalog(world, CLUSTER, raced)  # type: ignore[arg-type]
    with pytest.raises(Refused, match=f"belongs to cluster {OTHER}"):
        added(world, "ours", str(tmp_path))
    assert [one.state for one in world.stores.all()] == [STORE_ADDING] and other.stores.all()[0].state == STORE_ACTIVE
    world.stores.detach("ours")


@pytest.mark.parametrize(
    ("name", "url", "asked", "words"),
    [
        ("", "/x", {}, "1 to 63 bytes"), ("a/b", "/x", {}, "letters, digits"), ("a", "ftp://x", {}, "s3://BUCKET/PREFIX"),
        ("a", "s3://Bucket", {"keys": KEYS}, "no name of a bucket"), ("a", "s3://AK:S3CRET@bucket", {}, "no place for credentials"),
        ("a", "s3://bucket", {}, "--access-key-file"), ("a", "s3://bucket", {"keys": KEYS, "role": True}, "one of both"),
        ("a", "s3://bucket", {"keys": Credentials("AK", "S3CRET \u00e4")}, "a character that none can have"),
        ("a", "s3://bucket", {"keys": KEYS, "endpoint": "host:1"}, "http://HOST:PORT"),
        ("a", "s3://bucket", {"keys": KEYS, "endpoint": "http://AK:S3CRET@h"}, "without credentials"),
        ("a", "s3://bucket", {"keys": KEYS, "proxy": "http://h"}, "proxy is http://HOST:PORT"),
        ("a", "s3://bucket", {"keys": KEYS, "region": "../x"}, "region"), ("a", "s3://bucket", {"keys": KEYS, "ca": "x"}, "PEM"),
        ("a", "s3://bucket", {"keys": KEYS, "ca": "x" * 40_000}, "at most 32768 bytes"),
        ("a", "/x", {"rpo_ms": 9_999}, "--rpo.*10s to 7d"), ("a", "/x", {"keep_ms": 3_599_999}, "--keep.*1h to 3650d"),
        ("a", "/x", {"keys": KEYS}, "a directory has no"), ("a", "/x", {"endpoint": "http://h"}, "a directory has no"),
        ("a", "/x", {"role": True}, "a directory has no"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_asked(name: str, url: str, asked: dict[str, Any], words: str) -> None:
    world = World()
    with pytest.raises(ConfigError, match=words) as caught:
        added(world, name, url, **asked)
    assert world.jobs == [] and world.stores.all() == [] and "S3CRET" not in str(caught.value) and SECRET not in str(caught.value)


def test_everybody_else_is_told_that_stores_are_not_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for work in (
        lambda: World(STORES - 1).stores.all(), lambda: added(World(STORES - 1), "a", str(tmp_path)),
        lambda: end(World(STORES - 1).stores.check_new(str(tmp_path), StoreAsked(), _stay)), lambda: World(STORES - 1).stores.detach("a"),
    ):  # fmt: skip
        with pytest.raises(Refused, match="needs level 5"):
            work()
    monkeypatch.delenv(UNFINISHED_VARIABLE)
    with pytest.raises(Refused, match="not complete in this build"):
        World().stores.all()
    assert names_in(tmp_path) == []


def test_a_store_that_refuses_or_is_away_is_named_with_what_to_do(server: StrictStore, tmp_path: Path) -> None:
    world = World()
    with pytest.raises(Refused, match="does not know this key; give another"):
        added(world, "cold", "s3://bucket/p", endpoint=server.endpoint, keys=Credentials("AKWRONG", "a-secret-of-it"))
    server.refuses["PUT"] = "AccessDenied"
    with pytest.raises(Refused, match="s3:PutObject"):
        added(world, "cold", "s3://bucket/p", endpoint=server.endpoint, keys=KEYS)
    with pytest.raises(Refused, match="is its filesystem mounted"):
        added(world, "nas", str(tmp_path / "none"))
    assert world.stores.all() == [] and not server.objects


# --- set, check, detach ------------------------------------------------------------------------------------------------------
def test_keys_are_changed_when_the_new_ones_lead_to_the_same_store(server: StrictStore) -> None:
    world = World()
    added(world, "cold", "s3://bucket/p", endpoint=server.endpoint, keys=KEYS, sealed=True)
    new = Credentials("AKNEWKEY", "another-secret-of-it")
    with pytest.raises(Refused, match="does not know this key"):
        end(world.stores.change("cold", StoreAsked(keys=new), _stay))
    assert end(world.stores.check("cold", _stay))[0]
    server.keys = {"AKNEWKEY": "another-secret-of-it"}
    before = world.stores.find("cold")
    changed = end(world.stores.change("cold", StoreAsked(keys=new, rpo_ms=60_000), _stay))[1]
    assert changed.options == replace(before.options, rpo_ms=60_000)
    assert {one["level"] for one in end(world.stores.check("cold", _stay))[0]} == {"ok"}
    with strict_store() as elsewhere:
        elsewhere.keys = dict(server.keys)
        with pytest.raises(Refused, match="the marker of this cluster is not there; is that the same bucket"):
            end(world.stores.change("cold", StoreAsked(endpoint=elsewhere.endpoint), _stay))
        elsewhere.objects["p/awsomefs"] = pack_marker(Marker(store_work.UUID(OTHER), 7))
        with pytest.raises(Refused, match=f"belongs to cluster {OTHER}"):
            end(world.stores.change("cold", StoreAsked(endpoint=elsewhere.endpoint), _stay))
    assert world.stores.find("cold") == changed


def test_promises_are_changed_without_asking_the_store(tmp_path: Path) -> None:
    world = World()
    added(world, "nas", str(tmp_path))
    jobs = len(world.jobs)
    changed = end(world.stores.change("nas", StoreAsked(keep_ms=7_200_000), _stay))[1]
    assert changed.options.keep_ms == 7_200_000 and len(world.jobs) == jobs
    with pytest.raises(ConfigError, match="1h to"):
        end(world.stores.change("nas", StoreAsked(keep_ms=1), _stay))
    with pytest.raises(NotFound, match=r"there is no store 'no' \(stores: nas\)"):
        end(world.stores.change("no", StoreAsked(keep_ms=7_200_000), _stay))


def test_of_two_changes_at_once_one_is_told() -> None:
    world = World()
    with pytest.raises(FsError) as caught:
        world.propose(_set_of(world, add_one(world), -1))
    assert caught.value.errno == errno.ESTALE


def add_one(world: World) -> StoreInfo:
    from awsomefsd.base.types import StoreOptions
    from awsomefsd.meta.api.commands import AddStore

    world.propose(AddStore("x", "s3://bucket", OTHER, StoreOptions(300_000, 86_400_000, credentials=KEPT)))
    return world.stores.find("x")


def _set_of(world: World, info: StoreInfo, off: int) -> Any:
    from awsomefsd.meta.api.commands import SetStore

    return SetStore(info.store, info.changed + off, info.options)


def test_keys_that_were_lost_are_asked_for_and_given_again(server: StrictStore) -> None:
    world = World()
    info = add_one(world)  # as after a recovery from a device: the row is there, and no secret
    assert info.options.credentials == KEPT and not info.has_secret
    with pytest.raises(Refused, match=r"did not outlive a recovery.*store set x --access-key-file"):
        end(world.stores.check("x", _stay))
    changed = end(world.stores.change("x", StoreAsked(keys=KEYS, endpoint=server.endpoint), _stay))[1]
    assert changed.has_secret and end(world.stores.check("x", _stay))[0]
    changed = end(world.stores.change("x", StoreAsked(role=True), _stay))[1]
    assert not changed.has_secret and changed.options.credentials == OF_ROLE


def test_a_check_finds_a_store_whose_marker_is_gone(tmp_path: Path) -> None:
    world = World()
    added(world, "nas", str(tmp_path))
    (tmp_path / "awsomefs").unlink()
    [found] = end(world.stores.check("nas", _stay))[0]
    assert found["level"] == "bad" and "marker is gone" in found["words"]
    findings, _ = end(world.stores.check_new(str(tmp_path), StoreAsked(), _stay))
    assert {one["level"] for one in findings} == {"ok"} and findings[0]["words"] == "the prefix is unused"


# --- the child ----------------------------------------------------------------------------------------------------------------
def child_job(tmp_path: Path, **changes: Any) -> Job:
    from awsomefsd.base.types import StoreOptions

    given = {"url": f"file://{tmp_path}", "large_bytes": LARGE} | changes
    return Job(work=CHECK, options=StoreOptions(300_000, 86_400_000), cluster=store_work.UUID(CLUSTER), **given)


def test_work_in_a_child(tmp_path: Path) -> None:
    findings, done = end(run(child_job(tmp_path), _stay))
    assert [one["level"] for one in findings] == ["ok"] * 8 and done == {} and names_in(tmp_path) == []
    with pytest.raises(ConfigError, match="s3://BUCKET"):
        end(run(child_job(tmp_path, url="ftp://x"), _stay))


def test_a_child_that_is_left_removes_what_it_has_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays where it has put something until it is ended."""
    monkeypatch.setattr(store_child, "END_S", 120)
    monkeypatch.setattr(store_child.program, "command", lambda *_: [sys.executable, "-c", STAYS])
    ends: list[Any] = []
    work = run(child_job(tmp_path), ends.append)
    assert [next(work)["tried"] for _ in range(2)] == ["marker", "put"] and names_in(tmp_path)
    ends[0]()
    with pytest.raises(Unavailable, match="was ended before it was done"):
        end(work)
    assert names_in(tmp_path) == []
    work = run(child_job(tmp_path), _stay)
    assert [next(work)["tried"] for _ in range(2)] == ["marker", "put"] and names_in(tmp_path)
    work.close()
    assert names_in(tmp_path) == []


def test_a_child_that_nothing_ends_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it hangs in a call of a network filesystem that is away: no signal reaches it."""
    monkeypatch.setattr(store_child, "END_S", 0.01)
    monkeypatch.setattr(store_child, "KILLED_S", 0.01)
    monkeypatch.setattr(store_child.subprocess.Popen, "send_signal", lambda *_: None)
    monkeypatch.setattr(store_child.program, "command", lambda *_: [sys.executable, "-c", HANGS])
    started: list[Any] = []
    work = run(child_job(tmp_path), lambda end: started.append(end.__self__))
    assert next(work) == {"tried": "hangs"}
    work.close()
    [process] = started
    assert process.returncode is None, "it lives, and nobody waits for it"
    monkeypatch.undo()
    process.kill()
    process.wait()


def test_what_is_no_answer_is_passed_over_and_an_end_without_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "print('rubbish'); print('[1]'); print('{\"finding\": {\"tried\": \"x\"}}')"
    monkeypatch.setattr(store_child.program, "command", lambda *_: [sys.executable, "-c", said])
    work = run(child_job(tmp_path), _stay)
    assert next(work) == {"tried": "x"}
    with pytest.raises(Unavailable, match="before it was done"):
        next(work)


def test_a_job_says_its_secret_nowhere_but_in_its_bytes() -> None:
    job = Job(CHECK, "s3://bucket", add_one(World()).options, store_work.UUID(CLUSTER), KEYS)
    assert SECRET not in repr(job) and SECRET in store_work.packed(job).decode()
    assert SECRET not in repr(StoreAsked(keys=KEYS))
    lines: list[dict[str, Any]] = []
    store_work.run(b"{" + store_work.packed(job), lines.append)
    assert lines == [{"error": {"kind": "bug", "words": "the job of this process does not decode"}}]
    assert isinstance(_error("down", "x"), Unavailable) and isinstance(_error("foreign", "x"), Refused)
