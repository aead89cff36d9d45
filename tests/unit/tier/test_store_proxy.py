"""A store is asked through the proxy that it is given, and through no other: what the environment says does not count."""

from __future__ import annotations

import http.server
import os
import ssl
import threading
from collections.abc import Iterator

import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.tier import s3_store
from awsomefsd.tier.credentials import Credentials
from awsomefsd.tier.errors import StoreDown, StoreRefused
from awsomefsd.tier.s3_store import S3Options, S3Store
from awsomefsd.tier.store import Tries
from awsomefsd.tier.store_check import BAD, check_store
from awsomefsd.tier.store_url import parse_store_url
from tests.rigs.strict_proxy import StrictProxy, strict_proxy
from tests.rigs.strict_store import KEY_ID, SECRET, StrictStore, strict_store
from tests.unit.tier.test_s3_store import InstanceRoles

pytest.importorskip("obstore", reason="the library for buckets is not installed: pip install 'awsomefsd[store]'")
NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def proxy() -> Iterator[StrictProxy]:
    with strict_proxy() as made:
        yield made


def opened(server: StrictStore, **options: str) -> S3Store:
    given = S3Options(server.endpoint, credentials=Credentials(KEY_ID, SECRET), **options)  # type: ignore[arg-type]
    return S3Store(parse_store_url("s3://bucket/p"), given, Tries(first_pause_s=0.001))


def use(store: S3Store) -> None:
    store.put("x", b"abc")
    assert store.whole("x", 3) == b"abc" and b"".join(bytes(one) for one in store.read("x", 1, 2)) == b"bc"
    assert store.headers("x")["content-length"] == "3"
    store.delete("x")


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"])
def test_the_environments_proxies_do_not_count(monkeypatch: pytest.MonkeyPatch, proxy: StrictProxy, name: str) -> None:
    monkeypatch.setenv(name, proxy.url)
    with strict_store() as server:
        use(opened(server))
        server.endpoint = server.endpoint.replace("localhost", "127.0.0.1")  # names and addresses are excluded by other words
        use(opened(server))
    assert proxy.asked == []


def test_a_proxy_that_is_given_is_asked_for_everything(proxy: StrictProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", NOBODY)
    monkeypatch.setenv("no_proxy", "*")
    with strict_store() as server:
        use(opened(server, proxy=proxy.url + "/"))
        assert [method for method, _ in proxy.asked] == [method for method, _ in server.requests] == ["PUT", "GET", "GET", "GET", "DELETE"]
        assert all(target.startswith(server.endpoint) for _, target in proxy.asked)
        assert not [one for one in check_store(opened(server, proxy=proxy.url), large_bytes=100_000) if one.level == BAD]


def test_tls_goes_through_the_proxy_unread(proxy: StrictProxy) -> None:
    trustme = pytest.importorskip("trustme")
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with strict_store(context=context) as server:
        use(opened(server, proxy=proxy.url, ca=authority.cert_pem.bytes().decode()))
        assert {method for method, _ in server.requests} == {"PUT", "GET", "DELETE"}
    assert {method for method, _ in proxy.asked} == {"CONNECT"}


def test_a_proxy_that_refuses_or_is_not_there_is_named(proxy: StrictProxy) -> None:
    with strict_store() as server:
        with pytest.raises(StoreDown, match=rf"through the proxy {NOBODY}\): nobody answers"):
            opened(server, proxy=NOBODY).put("x", b"abc")
        proxy.refuses = 407
        with pytest.raises(StoreRefused, match=rf"through the proxy {proxy.url}\): status 407"):
            opened(server, proxy=proxy.url).put("x", b"abc")
        assert server.requests == []


@pytest.mark.parametrize(
    "proxy", ["http://user:pw@host:1", "https://host:1", "host:1", "http://host", "http://host:1/x", "http://host:99999", "http://h:1?a=pw"]
)
def test_what_is_no_proxy_is_refused(proxy: str) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT, without credentials") as caught:
        S3Store(parse_store_url("s3://bucket"), S3Options(credentials="role", proxy=proxy))
    assert "pw" not in str(caught.value)


def test_the_machine_is_asked_for_its_role_directly(proxy: StrictProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address is a link-local one, which no proxy reaches; here that of a stand-in."""
    assert "169.254.169.254" in s3_store._NOT_PROXIED.split(",")
    monkeypatch.setattr(s3_store, "_NOT_PROXIED", "127.0.0.1")
    roles = http.server.ThreadingHTTPServer(("127.0.0.1", 0), InstanceRoles)
    threading.Thread(target=lambda: roles.serve_forever(0.02), daemon=True).start()
    try:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{roles.server_port}")
        with strict_store() as server:
            given = S3Options(server.endpoint, credentials="role", proxy=proxy.url)
            S3Store(parse_store_url("s3://bucket/p"), given).put("x", b"abc")
            assert proxy.asked == [("PUT", f"{server.endpoint}/bucket/p/x")]
    finally:
        roles.shutdown()
        roles.server_close()
