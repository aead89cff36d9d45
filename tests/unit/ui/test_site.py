"""Which request gets which answer: without a session nothing but the form, with one every page and its JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import Refused, Unavailable
from awsomefsd.ui import readings, sign_in
from awsomefsd.ui.frame import NAVIGATION
from awsomefsd.ui.history import CHARTS, History
from awsomefsd.ui.readings import Readings
from awsomefsd.ui.sign_in import SignIn
from awsomefsd.ui.site import Site
from awsomefsd.ui.web import PageRequest, PageResponse
from tests.rigs.ui_daemon import UiDaemon

PAGES = [place for place, _ in NAVIGATION]
JSON = ["/api/status", "/api/nodes", "/api/events", "/api/charts"]
HOST = "127.0.0.1:7480"


class Visitor:
    """A browser: it keeps the cookie, and sends what the test says."""

    def __init__(self) -> None:
        self.daemon = UiDaemon()
        self.sign_in = SignIn()
        self.history = History(self.daemon.connect)
        self.readings = Readings(self.daemon.connect)
        self.site = Site(self.readings, self.history, self.sign_in, frozenset({"localhost"}), 7480)
        self.cookie = ""

    def ask(self, target: str, method: str = "GET", body: str = "", secure: bool = False, **headers: str) -> PageResponse:
        named = {"host": HOST, "cookie": self.cookie} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.site.answer(PageRequest(method, target, named, body.encode(), "192.0.2.7", secure))

    def enter(self, secure: bool = False, role: str = sign_in.READER) -> str:
        """Signs in; the Set-Cookie header."""
        answer = self.ask("/sign-in", "POST", f"code={self.sign_in.make_code(role)}", secure)
        assert (answer.status, dict(answer.headers)["Location"]) == (303, "/")
        told = dict(answer.headers)["Set-Cookie"]
        self.cookie = told.partition(";")[0]
        return told


@pytest.fixture
def visitor() -> Iterator[Visitor]:
    made = Visitor()
    yield made
    made.history.close()


def test_without_a_session_there_is_the_form_and_nothing_else(visitor: Visitor) -> None:
    for page in PAGES:
        answer = visitor.ask(page)
        assert (answer.status, dict(answer.headers)) == (303, {"Location": "/sign-in"})
    for place in JSON:
        assert visitor.ask(place).status == 401
    assert visitor.ask("/anything").status == 303, "which pages there are is for those who may see them"
    assert b'name="code"' in visitor.ask("/sign-in").body and visitor.ask("/static/page.js").status == 200
    assert not visitor.daemon.asked, "strangers cost the daemon nothing"


def test_with_a_session_there_are_all_pages(visitor: Visitor) -> None:
    visitor.enter()
    for page in PAGES:
        answer = visitor.ask(f"{page}?x=1")
        assert answer.status == 200 and f'href="{page}" aria-current="page"'.encode() in answer.body, page
    for place in JSON:
        json.loads(visitor.ask(place).body)
    assert visitor.ask("/nothing").status == 404
    assert json.loads(visitor.ask("/api/status").body)["cluster"] == "c"
    assert [one["name"] for one in json.loads(visitor.ask("/api/charts").body)["charts"]] == list(CHARTS)


def test_cookies_are_strict_and_secure_where_there_is_tls(visitor: Visitor) -> None:
    plain = visitor.enter().split("; ")
    assert plain[0].startswith("awsomefsd-7480=") and {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(plain) and "Secure" not in plain
    secure = visitor.enter(secure=True).split("; ")
    assert secure[0].startswith("__Host-awsomefsd=") and {"HttpOnly", "SameSite=Strict", "Path=/", "Secure"} <= set(secure)
    assert visitor.ask("/").status == 303, "the cookie of a TLS connection is none without TLS"
    assert visitor.ask("/", secure=True).status == 200


def test_signing_out_ends_the_session(visitor: Visitor) -> None:
    visitor.enter()
    assert visitor.ask("/sign-out").status == 405, "a link or a picture signs nobody out"
    gone = visitor.ask("/sign-out", "POST")
    assert "Max-Age=0" in dict(gone.headers)["Set-Cookie"]
    assert visitor.ask("/").status == 303, "the server has forgotten it, whatever a browser keeps"


def test_wrong_codes_get_no_session_and_then_no_answer(visitor: Visitor) -> None:
    for body in ("", "code=", "code=AAAA", "code=%ff%00<b>", "kode=1", "code=1&code=2"):
        answer = visitor.ask("/sign-in", "POST", body)
        assert "Set-Cookie" not in dict(answer.headers) and b"<b>" not in answer.body
    assert answer.status == 429 and b"wrong codes came from here" in answer.body
    assert visitor.ask("/sign-in", "POST", f"code={visitor.sign_in.make_code()}").status == 303, "who has one is not kept out"


def test_a_form_with_very_many_fields_is_a_wrong_code(visitor: Visitor) -> None:
    assert visitor.ask("/sign-in", "POST", "&".join(f"c{number}=1" for number in range(200))).status == 403


def test_forms_of_other_pages_are_refused(visitor: Visitor) -> None:
    code = visitor.sign_in.make_code()
    assert visitor.ask("/sign-in", "POST", f"code={code}", origin="http://evil.example").status == 403
    visitor.enter()
    assert visitor.ask("/sign-out", "POST", sec_fetch_site="cross-site").status == 403
    assert visitor.ask("/").status == 200
    assert visitor.sign_in.begin(code, "192.0.2.8"), "the code was not used up"


def test_other_names_of_this_address_are_refused(visitor: Visitor) -> None:
    visitor.enter()
    for host in ("evil.example:7480", "", "127.0.0.1.evil.example"):
        for path in ("/", "/api/status", "/sign-in", "/static/page.js"):
            answer = visitor.ask(path, host=host)
            assert answer.status == 421 and b"ui.names" in answer.body, (host, path)
    assert visitor.ask("/", host="localhost:7480").status == 200


@pytest.mark.parametrize(
    "path",
    ["/static/../site.py", "/static/%2e%2e/site.py", "/static//etc/passwd", "/static/", "/static/page.js/", "/static/page.js%00.css",
     "//etc/passwd", "/../../etc/passwd", "/static/..%2f..%2fsite.py"],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(visitor: Visitor, path: str) -> None:
    visitor.enter()
    assert visitor.ask(path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "XYZ"])
def test_pages_are_only_read(visitor: Visitor, method: str) -> None:
    visitor.enter()
    for path in (*PAGES, *JSON, "/static/page.js"):
        answer = visitor.ask(path, method)
        assert (answer.status, dict(answer.headers)["Allow"]) == (405, "GET, HEAD"), path
    assert visitor.ask("/sign-in", method).status in (403, 405)


def test_a_daemon_that_does_not_answer_is_said_on_every_page(visitor: Visitor) -> None:
    visitor.enter()
    visitor.daemon.error = Unavailable("no daemon answers at /run/<b>admin.sock")
    for page in set(PAGES) - {"/charts"}:
        answer = visitor.ask(page)
        assert answer.status == 503 and b"The daemon does not answer" in answer.body and b"/run/&lt;b&gt;admin.sock" in answer.body
        assert b"<nav" in answer.body, "the way to the other pages stays"
    assert json.loads(visitor.ask("/api/status").body) == {"error": "no daemon answers at /run/<b>admin.sock"}
    visitor.daemon.error = Refused("not you")
    assert b"The daemon refuses" in visitor.ask("/").body
    visitor.daemon.error = None
    assert visitor.ask("/").status == 200, "it is back"


def test_many_readers_cost_the_daemon_one_question(visitor: Visitor) -> None:
    visitor.enter()
    now = [100.0]
    visitor.readings._clock = lambda: now[0]
    for page in ("/", "/devices", "/volumes", "/mounts", "/health", "/"):
        assert visitor.ask(page).status == 200
    assert sorted(visitor.daemon.asked) == ["GetStatus", "ListNodes"]
    now[0] += readings.FRESH_S + 0.1
    visitor.ask("/")
    assert sorted(visitor.daemon.asked) == ["GetStatus", "GetStatus", "ListNodes"]


def test_those_who_wait_for_a_daemon_that_hangs_give_up(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor.enter()
    monkeypatch.setattr(readings, "ANSWER_S", 0.05)
    with visitor.readings._asking:  # somebody asks, and gets no answer
        answer = visitor.ask("/")
    assert answer.status == 503 and b"has not answered an earlier question" in answer.body
    with visitor.readings._following:  # somebody reads a long log
        assert visitor.ask("/events").status == 503 and visitor.ask("/").status == 200


# --- events ------------------------------------------------------------------------------------------------------------------


def change(index: int, command: str = "RevokeToken", **fields: object) -> pb.Change:
    return pb.Change(index=index, time_ns=index * 10**9, command=command, fields=json.dumps({"id": f"t{index}", **fields}))


def test_events_are_read_once_and_told_newest_first(visitor: Visitor) -> None:
    visitor.enter()
    visitor.daemon.changes = [change(1), pb.Change(index=2, command="SetAttr"), change(3)]
    told = json.loads(visitor.ask("/api/events").body)
    assert [one["index"] for one in told] == [3, 1] and told[0]["what"] == "token t3 was revoked"
    visitor.daemon.changes.append(change(4))
    assert b"token t4 was revoked" in visitor.ask("/events").body
    assert [asked for asked in visitor.daemon.asked if asked.startswith("Follow")] == ["Follow 0", "Follow 3"]


def test_a_long_log_is_read_from_near_its_end(visitor: Visitor) -> None:
    visitor.enter()
    visitor.daemon.status.figures["last_index"] = "1000000"
    visitor.ask("/events")
    assert f"Follow {1_000_000 - readings.ENTRIES_MAX}" in visitor.daemon.asked


def test_a_log_that_is_not_read_in_time_is_read_further_the_next_time(visitor: Visitor) -> None:
    visitor.enter()
    visitor.ask("/")
    visitor.daemon.changes = [change(1), change(2)]
    visitor.daemon.error = None
    follow = visitor.daemon.follow

    def slow(timeout_s: float | None = None, after: int = 0) -> Iterator[pb.Change]:
        yield next(follow(timeout_s, after))
        raise Unavailable("no answer within 8 s")

    visitor.daemon.follow = slow  # type: ignore[method-assign]
    first = visitor.ask("/events").body
    assert b"t1 was revoked" in first and b"still being read" in first
    visitor.daemon.follow = follow  # type: ignore[method-assign]
    second = visitor.ask("/events").body
    assert b"t1 was revoked" in second and b"t2 was revoked" in second and b"still being read" not in second


def test_another_cluster_begins_with_no_events(visitor: Visitor) -> None:
    visitor.enter()
    visitor.daemon.changes = [change(1)]
    visitor.readings._clock = iter(range(100, 10_000, 10)).__next__
    assert len(json.loads(visitor.ask("/api/events").body)) == 1
    visitor.daemon.status = pb.Status(cluster="another", node="n")
    visitor.daemon.changes = []
    assert json.loads(visitor.ask("/api/events").body) == []


def test_a_session_that_is_over_ends_at_the_form(visitor: Visitor) -> None:
    visitor.enter()
    visitor.sign_in._clock = lambda: 1e12
    assert visitor.ask("/").status == 303 and sign_in.SESSION_S < 1e12


def test_strangers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    visitor = Visitor()
    with caplog.at_level(logging.WARNING):
        for _ in range(200):
            visitor.ask("/sign-in", "POST", "code=x")
    visitor.history.close()
    assert len(caplog.records) == sign_in.CODES_TRIED_MAX + 1
