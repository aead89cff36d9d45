"""The check of a store: a good one passes, whatever its kind; each thing that does not fit is found and named; nothing stays behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from awsomefsd.tier.directory_store import DirectoryStore
from awsomefsd.tier.object_format import Marker, pack_marker
from awsomefsd.tier.s3_store import S3Options, S3Store
from awsomefsd.tier.store import Tries
from awsomefsd.tier.store_check import BAD, NOTE, OK, StoreFinding, check_store, told_by_headers
from awsomefsd.tier.store_url import parse_store_url
from tests.rigs.segments_in_memory import CLUSTER
from tests.rigs.strict_store import KEY_ID, SECRET, StrictStore, strict_store

ALL = ["marker", "put", "get", "put again", "ranges", "missing", "large object", "delete"]
LARGE = 3_000_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictStore]:
    pytest.importorskip("obstore", reason="the library for buckets is not installed: pip install 'awsomefsd[store]'")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with strict_store() as store:
        yield store


def checked(server: StrictStore) -> list[StoreFinding]:
    store = S3Store(parse_store_url("s3://bucket/p"), S3Options(server.endpoint), Tries(first_pause_s=0.001))
    return check_store(store, large_bytes=LARGE, pause=lambda _seconds: None)


def bad(findings: list[StoreFinding]) -> list[str]:
    return [one.tried for one in findings if one.level == BAD]


def test_a_good_bucket_passes_and_nothing_stays(server: StrictStore) -> None:
    findings = checked(server)
    assert [one.tried for one in findings] == ALL and {one.level for one in findings} == {OK}
    assert not server.objects


def test_a_good_directory_passes_and_nothing_stays(tmp_path: Path) -> None:
    findings = check_store(DirectoryStore(parse_store_url(str(tmp_path))), large_bytes=LARGE)
    assert [one.tried for one in findings] == ALL and {one.level for one in findings} == {OK}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    findings = check_store(DirectoryStore(parse_store_url(str(tmp_path / "none")), Tries(first_pause_s=0.001)), large_bytes=LARGE)
    assert [(one.tried, one.level) for one in findings] == [("marker", BAD)] and "mounted" in findings[0].words


def test_a_prefix_of_another_cluster_is_not_touched(server: StrictStore) -> None:
    server.objects["p/awsomefs"] = pack_marker(Marker(CLUSTER, 7))
    [found] = checked(server)
    assert found.level == BAD and str(CLUSTER) in found.words
    store = S3Store(parse_store_url("s3://bucket/p"), S3Options(server.endpoint))
    assert not bad(check_store(store, CLUSTER, large_bytes=LARGE))
    server.objects["p/awsomefs"] = b"something else"
    [found] = checked(server)
    assert found.level == BAD and "no marker" in found.words
    assert list(server.objects) == ["p/awsomefs"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_rights_that_are_missing_are_named(server: StrictStore, method: str) -> None:
    server.refuses[method] = "AccessDenied"
    findings = checked(server)
    assert bad(findings) == [{"GET": "marker", "PUT": "put", "DELETE": "delete"}[method]]
    assert "s3:ListBucket" in next(one.words for one in findings if one.level == BAD)
    if method == "DELETE":
        assert "removed by hand" in findings[-1].words


def test_a_forbidden_name_that_is_not_there_is_explained(server: StrictStore) -> None:
    """Amazon answers so where s3:ListBucket is missing: a lost object would look like a refusal."""
    server.missing = (403, "AccessDenied")
    [found] = checked(server)
    assert found.level == BAD and "s3:ListBucket" in found.words
    server.missing = (404, "NoSuchKey")
    server.objects["p/awsomefs"] = pack_marker(Marker(CLUSTER, 7))
    server.missing = (403, "AccessDenied")
    store = S3Store(parse_store_url("s3://bucket/p"), S3Options(server.endpoint))
    findings = check_store(store, CLUSTER, large_bytes=LARGE, pause=lambda _seconds: None)
    assert "missing" in bad(findings) and not [name for name in server.objects if "check" in name]


def test_a_store_that_shows_objects_late_is_good_enough_up_to_a_bound(server: StrictStore) -> None:
    server.invisible_gets = 5
    findings = checked(server)
    assert not bad(findings) and next(one for one in findings if one.tried == "get").level == NOTE
    server.invisible_gets = 10_000
    assert bad(checked(server)) == ["get"]
    assert not server.objects


@pytest.mark.parametrize(
    ("fault", "method", "times", "tried"),
    [
        ("wrong", "GET", 20, "get"), ("lose", "PUT", 1, "get"), ("lose", "PUT", 3, "get"), ("lose", "DELETE", 9, "delete"),
        ("status:503:SlowDown", "any", 3, "marker"), ("lost-page", "any", 1, "marker"), ("page", "any", 1, "marker"),
    ],
)  # fmt: skip
def test_faults_are_found_where_they_show(server: StrictStore, fault: str, method: str, times: int, tried: str) -> None:
    if fault == "wrong":
        server.fail("status:404:NoSuchKey")  # of the marker
    server.fail(fault, method, times)
    assert bad(checked(server)) == [tried]


def test_one_object_that_is_cut_is_found(server: StrictStore) -> None:
    """The large one is put, acknowledged, and is not there whole."""
    real = server.put
    server.put = lambda name, body: real(name, body[:-1] if len(body) == LARGE else body)  # type: ignore[method-assign]
    assert bad(checked(server)) == ["large object"]
    assert not server.objects


@pytest.mark.parametrize(
    ("headers", "level", "words"),
    [
        ({"x-amz-expiration": 'expiry-date="Fri, 23 Dec 2012 00:00:00 GMT", rule-id="1"'}, BAD, "lifecycle rule deletes"),
        ({"x-amz-version-id": "3/L4kqtJlcpXroDTDmJ"}, NOTE, "keeps versions"),
        ({"x-amz-object-lock-mode": "COMPLIANCE"}, NOTE, "locked"),
        ({"x-amz-storage-class": "DEEP_ARCHIVE"}, BAD, "cannot be read"),
        ({"content-encoding": "gzip"}, BAD, "encoded"),
        ({"date": formatdate(1_000_100, usegmt=True)}, NOTE, "differ by 100 s"),
        ({"date": formatdate(1_001_000, usegmt=True)}, BAD, "differ by 1000 s"),
    ],
)
def test_what_a_store_says_of_itself(server: StrictStore, headers: dict[str, str], level: str, words: str) -> None:
    [(found, told)] = told_by_headers(headers, 1_000_000)
    assert found == level and words in told
    if "date" not in headers:
        server.headers = headers
        [one] = [one for one in checked(server) if one.tried == "headers"]
        assert (one.level, one.words) == (level, told)


def test_headers_that_mean_nothing_are_not_told() -> None:
    plain = {"date": "yesterday", "x-amz-version-id": "null", "x-amz-storage-class": "STANDARD", "content-encoding": "identity"}
    assert told_by_headers(plain, time.time()) == told_by_headers({}, 0) == []


def test_a_check_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(parse_store_url(str(tmp_path)))

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_store(store, large_bytes=LARGE)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
