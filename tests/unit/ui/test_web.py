"""Which hosts and which origins a request may name."""

from __future__ import annotations

import pytest

from awsomefsd.ui.web import PageRequest, host_fits, same_origin

NAMES = frozenset({"localhost", "node1.example"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:7480", "10.1.2.3:1", "[::1]", "[::1]:7480", "LocalHost:7480", "node1.example"])
def test_addresses_and_own_names_fit(host: str) -> None:
    assert host_fits(host, NAMES)


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:7480", "127.0.0.1.evil.example", "localhost.", "localhost:x", "localhost:7480:1", "::1",
     "[127.0.0.1]", "[::1", "localhost@evil.example", "127.0.0.1 evil", "0x7f000001", "2130706433", "127.1", "[::1]x:7480", "a" * 9_000],
)  # fmt: skip
def test_other_names_do_not(host: str) -> None:
    assert not host_fits(host, NAMES)


def request(secure: bool = False, **headers: str) -> PageRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return PageRequest("POST", "/sign-in", {"host": "127.0.0.1:7480", **named}, b"", "127.0.0.1", secure)


def test_a_form_of_another_page_is_known_by_its_origin() -> None:
    assert same_origin(request()), "a program, or an old browser"
    assert same_origin(request(origin="http://127.0.0.1:7480", sec_fetch_site="same-origin"))
    assert same_origin(request(True, origin="https://127.0.0.1:7480"))
    for origin in ("http://evil.example", "null", "https://127.0.0.1:7480", "http://127.0.0.1:7481", "http://127.0.0.1", ""):
        assert not same_origin(request(origin=origin)), origin
    for site in ("cross-site", "same-site", "nonsense"):
        assert not same_origin(request(sec_fetch_site=site)), site


def test_cookies_are_read_as_they_stand() -> None:
    assert request(cookie="a=1; b=x=y ;c").cookies() == {"a": "1", "b": "x=y", "c": ""}
    assert request().cookies() == {}
