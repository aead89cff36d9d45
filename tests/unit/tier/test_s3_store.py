"""A bucket, against a store that checks signatures and breaks on purpose: each wrong answer is sorted, and says what to do."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.tier import s3_store
from awsomefsd.tier.errors import ObjectDamaged, ObjectMissing, StoreDown, StoreError, StoreForeign, StoreRefused, StoreSlow
from awsomefsd.tier.object_format import Marker, pack_marker
from awsomefsd.tier.s3_store import S3Options, S3Store
from awsomefsd.tier.store import Tries, deadline_s, owner
from awsomefsd.tier.store_url import parse_store_url
from tests.rigs.segments_in_memory import CLUSTER
from tests.rigs.strict_store import KEY_ID, SECRET, StrictStore, strict_store

pytest.importorskip("obstore", reason="the library for buckets is not installed: pip install 'awsomefsd[store]'")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def server() -> Iterator[StrictStore]:
    with strict_store() as store:
        yield store


def open_store(server: StrictStore, **options: str) -> S3Store:
    given = {"endpoint": server.endpoint} | options
    return S3Store(parse_store_url("s3://bucket/some/prefix"), S3Options(**given), Tries(first_pause_s=0.001))


def test_objects_come_back_whole_in_ranges_and_from_the_end(server: StrictStore, seed: int) -> None:
    rng = random.Random(seed)
    store, body = open_store(server), rng.randbytes(7_000_001)
    store.put("a/b-1", memoryview(body))
    store.put("a/b-1", body)
    assert server.objects == {"some/prefix/a/b-1": body}
    ranges = [(rng.randrange(3_000_000), rng.randrange(1, 4_000_000)) for _ in range(5)]
    for start, length in [(0, len(body)), (0, 1), (len(body) - 1, 1), *ranges]:
        assert b"".join(bytes(chunk) for chunk in store.read("a/b-1", start, length)) == body[start : start + length]
    assert store.suffix("a/b-1", 128) == (body[-128:], len(body))
    store.put("small", b"abc")
    assert store.suffix("small", 128) == (b"abc", 3) and store.whole("small", 3) == b"abc"
    store.delete("a/b-1")
    store.delete("a/b-1")
    assert list(server.objects) == ["some/prefix/small"]
    assert {method for method, _ in server.requests} == {"GET", "PUT", "DELETE"}
    store.close()


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("status:503:SlowDown", StoreSlow, "fewer requests"),
        ("status:429:TooMany", StoreSlow, "fewer requests"),
        ("status:500:InternalError", StoreDown, "status 500"),
        ("status:503:ServiceUnavailable", StoreDown, "status 503"),
        ("drop", StoreDown, "was cut"),
        ("status:403:AccessDenied", StoreRefused, "s3:ListBucket"),
        ("status:403:RequestTimeTooSkewed", StoreRefused, "clock"),
        ("status:403:InvalidAccessKeyId", StoreRefused, "does not know this key"),
        ("status:403:SignatureDoesNotMatch", StoreRefused, "secret does not belong"),
        ("status:400:ExpiredToken", StoreRefused, "token is over"),
        ("status:403:InvalidObjectState", StoreRefused, "archive"),
        ("status:401:Whatever", StoreRefused, "check credentials"),
        ("status:507:Full", StoreRefused, "full"),
        ("status:404:NoSuchBucket", StoreForeign, "check bucket"),
        ("status:400:AuthorizationHeaderMalformed", StoreForeign, "region"),
        ("status:405:MethodNotAllowed", StoreForeign, "no store does"),
        ("status:409:Conflict", StoreForeign, "no store does"),
        ("lost-page", StoreForeign, "no word of a store"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_an_answer_is_sorted(server: StrictStore, method: str, fault: str, kind: type[StoreError], words: str) -> None:
    store = open_store(server)
    store.put("x", b"content")
    work = {
        "GET": lambda: list(store.read("x", 0, 7)), "PUT": lambda: store.put("x", b"content"), "DELETE": lambda: store.delete("x"),
    }[method]  # fmt: skip
    before = len(server.requests)
    server.fail(fault, method, 1 if not kind.retry_helps else 3)
    with pytest.raises(kind, match=words) as caught:
        work()
    assert str(caught.value).startswith("s3://bucket/some/prefix: x: ") and caught.value.kind == kind.kind
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert len(server.requests) - before == (3 if kind.retry_helps else 1)
    server.fail(fault, method, 2 if kind.retry_helps else 0)
    work()


def test_what_is_not_there_is_missing_if_the_store_says_so(server: StrictStore) -> None:
    store = open_store(server)
    for ask in (lambda: list(store.read("no", 0, 1)), lambda: store.suffix("no", 1), lambda: store.whole("no", 1), lambda: owner(store)):
        with pytest.raises(ObjectMissing, match="NoSuchKey"):
            ask()
    server.fail("status:404:NoSuchKey", "DELETE")
    store.delete("no")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("short", StoreForeign), ("long", StoreForeign), ("whole", StoreForeign), ("page", StoreForeign), ("xml", StoreForeign),
        ("plain", StoreForeign),
    ],
)  # fmt: skip
def test_a_range_that_is_none_is_never_taken_for_it(server: StrictStore, fault: str, kind: type[StoreError]) -> None:
    store = open_store(server)
    store.put("x", bytes(range(200)))
    server.fail(fault)
    with pytest.raises(kind):
        list(store.read("x", 10, 100))
    for start, length in ((150, 51), (150, 1_000), (200, 1), (10_000, 1)):
        with pytest.raises(ObjectDamaged):
            list(store.read("x", start, length))
    with pytest.raises(ObjectDamaged, match="more than 199"):
        store.whole("x", 199)


def test_a_body_that_is_cut_goes_on_behind_what_came(server: StrictStore, seed: int) -> None:
    store, body = open_store(server), random.Random(seed).randbytes(5 << 20)
    store.put("x", body)
    for _ in range(6):
        server.fail("cut:1500000")
    assert b"".join(bytes(chunk) for chunk in store.read("x", 0, len(body))) == body
    ranges = len([method for method, _ in server.requests if method == "GET"])
    assert ranges > 3, "tries that bring something are not counted"
    server.fail("cut:0", times=3)
    with pytest.raises(StoreDown, match="was cut"):
        list(store.read("x", 0, len(body)))


def test_silence_has_an_end(server: StrictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.tier.s3_store.SILENCE_S", 3)
    server.objects["x"] = bytes(100)
    server.fail("stall:50", times=2)
    impatient = S3Store(parse_store_url("s3://bucket"), S3Options(server.endpoint), Tries(tries=1))
    with pytest.raises(StoreSlow, match="deadline"):
        impatient.whole("x", 100)
    patient = S3Store(parse_store_url("s3://bucket"), S3Options(server.endpoint), Tries(first_pause_s=0.001))
    assert patient.whole("x", 100) == bytes(100)


def test_headers_that_come_byte_by_byte_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "HEADERS_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            asking, _ = listener.accept()
            asking.recv(1 << 16)
            with asking, contextlib.suppress(OSError):
                asking.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not ended.wait(0.05):
                    asking.sendall(b"a")

        ended = threading.Event()
        thread = threading.Thread(target=drip)
        thread.start()
        store = S3Store(parse_store_url("s3://bucket/p"), S3Options(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        with pytest.raises(StoreSlow, match="no headers within"):
            store.headers("a")
        ended.set()
        thread.join()


def test_a_put_that_nobody_answers_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.tier.s3_store.CLASS_S", 1)
    monkeypatch.setattr("awsomefsd.tier.store.REQUEST_S", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = S3Store(parse_store_url("s3://bucket"), S3Options(f"http://127.0.0.1:{silent.getsockname()[1]}"), Tries(tries=1))
        with pytest.raises(StoreSlow, match="deadline"):
            store.put("x", b"abc")


def test_a_stop_ends_the_pauses(server: StrictStore) -> None:
    stop = threading.Event()
    store = S3Store(parse_store_url("s3://bucket"), S3Options(server.endpoint), Tries(tries=1_000, first_pause_s=3_600, stop=stop))
    server.fail("status:500:InternalError", times=1_000)
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(StoreDown):
        store.whole("x", 1)


def test_nobody_there_is_down_and_a_name_that_leads_nowhere_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for endpoint in (f"http://127.0.0.1:{port}", "http://nothing.invalid"):
        with pytest.raises(StoreDown, match="nobody answers"):
            S3Store(parse_store_url("s3://bucket"), S3Options(endpoint), Tries(first_pause_s=0.001)).put("x", b"")


def test_a_redirect_is_no_store(server: StrictStore) -> None:
    store = open_store(server)
    with strict_store() as other:
        server.fail(f"redirect:{other.endpoint}/bucket/some/prefix/x", "any", 5)
        with pytest.raises(StoreForeign, match="status 307"):
            store.put("x", b"secret content")
        for ask in (lambda: store.delete("x"), lambda: store.whole("x", 100)):
            with pytest.raises(StoreRefused, match="AccessDenied"):
                ask()
        assert not other.objects and {path for _, path in other.requests} == {"/bucket/some/prefix/x"}
    server.fail(f"redirect:{server.endpoint}/bucket/some/prefix/x", "GET", 30)
    with pytest.raises(StoreForeign, match="redirects"):
        store.whole("x", 100)


def test_a_put_without_answer_is_sent_again_with_the_same_bytes(server: StrictStore) -> None:
    store = open_store(server)
    server.fail("done-and-cut", "PUT", 2)
    store.put("x", b"abc")
    assert server.objects == {"some/prefix/x": b"abc"} and len(server.requests) == 3
    server.fail("done-and-cut", "DELETE", 2)
    store.delete("x")
    assert not server.objects and len(server.requests) == 6


def test_what_the_client_cannot_see_the_object_tells(server: StrictStore) -> None:
    """A wrong byte and a PUT that was lost: found by checksums and by reading back, which is whoever asks's."""
    store = open_store(server)
    store.put("x", b"abcdef")
    server.fail("wrong")
    assert store.whole("x", 6) != b"abcdef"
    server.fail("lose", "PUT")
    store.put("y", b"abc")
    with pytest.raises(ObjectMissing):
        store.whole("y", 3)


def test_the_servers_clock_decides(server: StrictStore) -> None:
    import time

    server.now = lambda: time.time() + 3_600
    with pytest.raises(StoreRefused, match="set this node's clock"):
        open_store(server).put("x", b"")


def test_keys_in_a_file_can_be_changed_in_place(server: StrictStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(f"{KEY_ID}\n{SECRET}\n")
    store = open_store(server, credentials=str(path))
    store.put("x", b"abc")
    server.keys = {"AKNEWKEY": "another-secret"}
    with pytest.raises(StoreRefused, match="does not know this key"):
        store.put("x", b"abc")
    path.write_text("[default]\naws_access_key_id = AKNEWKEY\naws_secret_access_key = another-secret\n")
    store.put("x", b"abc")
    path.unlink()
    server.keys = {}
    with pytest.raises(StoreRefused, match="does not know this key"):
        store.put("x", b"abc")
    with pytest.raises(StoreRefused, match="no credentials"):
        store.put("x", b"abc")


def test_settings_of_the_environment_change_nothing(server: StrictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "mars-1", "AWS_BUCKET": "other", "AWS_CONDITIONAL_PUT": "etag", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_UNSIGNED_PAYLOAD": "true", "AWS_S3_EXPRESS": "true", "AWS_REQUEST_PAYER": "true", "AWS_ALLOW_HTTP": "false",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    open_store(server).put("x", b"abc")
    assert server.objects == {"some/prefix/x": b"abc"}


def test_tls_needs_an_authority_that_is_given(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    with strict_store(context=context) as server:
        store = open_store(server, ca_file=str(ca_file))
        store.put("x", b"abc")
        assert store.whole("x", 3) == b"abc" and store.headers("x")["content-length"] == "3"
        with pytest.raises(StoreForeign, match="not to be trusted"):
            open_store(server).put("x", b"abc")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpoint": "http://user:pw@host"}, "without credentials"), ({"endpoint": "ftp://x"}, "http"), ({"endpoint": "host:9"}, "http"),
        *(({"endpoint": f"http://{place}"}, "HOST:PORT") for place in ("[x", "exa\u2100mple", "h:no", "h:99999", "h:0", "a b")),
        ({"region": "../x"}, "region"), ({"ca_file": "/nonexistent"}, "No such file"), ({"credentials": "/nonexistent"}, "No such file"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        S3Store(parse_store_url("s3://bucket"), S3Options(**options))
    assert "pw" not in str(caught.value)


def test_credentials_are_in_no_text_of_it(server: StrictStore, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(f"{KEY_ID}\n{SECRET}\n")
    for store in (open_store(server), open_store(server, credentials=str(path))):
        server.fail("status:403:SignatureDoesNotMatch", "PUT")
        with pytest.raises(StoreRefused) as caught:
            store.put("x", b"abc")
        texts = [str(caught.value), repr(caught.value), repr(store), repr(vars(store)), store.url]
        assert not any(SECRET in text for text in texts)


@pytest.mark.parametrize(
    "given",
    [
        {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"},
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"},
    ],
)
def test_a_role_that_nobody_gives_is_told_from_a_store_that_is_down(
    server: StrictStore, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreRefused, match="this machine's role"):
        open_store(server, credentials="role").put("x", b"abc")
    assert not server.requests


class InstanceRoles(http.server.BaseHTTPRequestHandler):
    """What an instance asks for the credentials of its role; they are over after an hour."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_words: object) -> None:
        pass

    def do_PUT(self) -> None:
        self._say("a-token")

    def do_GET(self) -> None:
        if self.path.endswith("/security-credentials/"):
            return self._say("a-role")
        until = datetime.now(UTC) + timedelta(hours=1)
        keys = {"AccessKeyId": KEY_ID, "SecretAccessKey": SECRET, "Token": "a-session", "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._say(json.dumps({"Code": "Success"} | keys))

    def _say(self, text: str) -> None:
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def test_the_role_of_an_instance_is_asked_for(server: StrictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    roles = http.server.ThreadingHTTPServer(("127.0.0.1", 0), InstanceRoles)
    threading.Thread(target=lambda: roles.serve_forever(0.02), daemon=True).start()
    try:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{roles.server_port}")
        store = open_store(server, credentials="role")
        store.put("x", b"abc")
        assert store.headers("x")["content-length"] == "3"
    finally:
        roles.shutdown()
        roles.server_close()
    assert server.objects == {"some/prefix/x": b"abc"}


def test_the_marker_says_whose_a_prefix_is(server: StrictStore) -> None:
    store = open_store(server)
    marker = Marker(CLUSTER, 7)
    store.put("awsomefs", pack_marker(marker))
    assert owner(store) == marker
    for content in (b"x" * 64, b"x" * 10_000, b""):
        server.objects["some/prefix/awsomefs"] = content
        with pytest.raises(StoreForeign, match="no marker"):
            owner(store)
    server.fail("page")
    with pytest.raises(StoreForeign):
        owner(store)


def test_what_took_all_the_time_is_not_tried_again(server: StrictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.tier.store.REQUEST_S", -1)
    server.fail("status:500:InternalError", "any", 4)
    store = open_store(server)
    for ask in (lambda: store.put("x", b""), lambda: store.delete("x"), lambda: store.whole("x", 1), lambda: list(store.read("x", 0, 1))):
        before = len(server.requests)
        with pytest.raises(StoreDown):
            ask()
        assert len(server.requests) == before + 1


@pytest.mark.parametrize(
    ("bucket", "url"),
    [
        ("bucket", "https://bucket.s3.eu-west-1.amazonaws.com/p/x?"), ("my.bucket", "https://s3.eu-west-1.amazonaws.com/my.bucket/p/x?"),
    ],
)  # fmt: skip
def test_amazons_address_of_a_bucket(bucket: str, url: str) -> None:
    """One with dots in it stands in the path: no certificate is good for it as a name."""
    import obstore

    store = S3Store(parse_store_url(f"s3://{bucket}/p"), S3Options(region="eu-west-1"))
    assert obstore.sign(store._client(0, reads=True), "GET", "x", timedelta(seconds=60)).startswith(url)


def test_deadlines_grow_with_the_bytes() -> None:
    assert deadline_s(0) == 60 and deadline_s(64 << 20) == 60 + 256


def test_the_library_comes_with_the_first_store_only() -> None:
    """Memory and time are the worker's and the keeper's otherwise; the figures stand in decision 432."""
    code = "import sys, awsomefsd.tier.s3_store, awsomefsd.tier.directory_store; print('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
