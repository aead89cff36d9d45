"""The search for known vulnerabilities never calls clean what nobody was asked about."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from buildtools import audit, binary
from buildtools.say import BuildError

CLEAN = {"name": "a", "version": "1", "vulns": []}
HIT = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": [], "description": ""}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


def said(*rows: dict[str, object]) -> str:
    return json.dumps({"dependencies": rows, "fixes": []})


def test_what_pip_audit_says() -> None:
    assert audit.understand(said(CLEAN, HIT)) == (["a"], ["b 2: PYSEC-1 (fixed in 3)"], [])
    assert audit.understand(said(CLEAN)).answered
    assert not audit.understand(said(CLEAN, UNKNOWN)).answered, "one that could not be asked about is not clean"
    for nothing in ("", "[]", "{}", said()):
        assert not audit.understand(nothing).answered


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([said(CLEAN)], 0),
        ([said(UNKNOWN), said(CLEAN)], 0),
        ([said(UNKNOWN), ""], audit.NOBODY_ANSWERED),
        ([said(UNKNOWN, HIT)], 1),
    ],
)
def test_exit_codes(answers: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = iter(answers)
    monkeypatch.setattr(audit, "ask", lambda lock, service: (audit.understand(next(rest)), ""))
    assert audit.build(Path("lock")) == code


LOCKED = (("sound", "1.0"), ("holed", "2.0"))
LOCK = "".join(f"{name}=={version} \\\n    --hash=sha256:{'0' * 64}\n" for name, version in LOCKED)
HOLE = {  # an answer in the form of OSV's schema
    "id": "PYSEC-2020-1", "schema_version": "1.6.0", "summary": "a hole", "modified": "2020-01-02T00:00:00Z", "aliases": ["CVE-2020-1"],
    "affected": [{
        "package": {"name": "holed", "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.1"}]}],
    }],
}  # fmt: skip


class Osv(ThreadingHTTPServer):
    """Answers questions as `answers` says, with 503 where it has nothing."""

    answers: dict[str, Any]
    asked: list[tuple[str, Any]]


class Answering(BaseHTTPRequestHandler):
    server: Osv

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        answer = self.server.answers.get(body["package"]["name"])
        said = json.dumps(answer).encode()
        self.send_response(200 if answer is not None else 503)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_words: Any) -> None:
        pass


@pytest.fixture
def osv(monkeypatch: pytest.MonkeyPatch) -> Iterator[Osv]:
    with Osv(("127.0.0.1", 0), Answering) as server:
        server.answers, server.asked = {}, []
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"http://127.0.0.1:{server.server_port}/v1/query")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(audit, "SERVICES", ("osv",))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        ({"sound": {}, "holed": {"vulns": [HOLE]}}, 1, "holed 2.0: PYSEC-2020-1 (fixed in 2.1)"),
        ({"sound": {}, "holed": {}}, 0, "osv knows nothing against 2 packages"),
        ({"sound": {}}, audit.NOBODY_ANSWERED, "osv did not answer"),
        ({}, audit.NOBODY_ANSWERED, "osv did not answer"),
    ],
)
def test_the_question_itself(
    osv: Osv, tmp_path: Path, capsys: pytest.CaptureFixture[str], answers: dict[str, Any], code: int, said: str
) -> None:
    """The real pip-audit, which pip brings when it is not there yet, asks a server here."""
    try:
        audit._tool()
    except BuildError as err:
        pytest.skip(f"pip-audit cannot be had: {err}")
    osv.answers = answers
    lock = tmp_path / "requirements.lock"
    lock.write_text(LOCK)
    assert audit.build(lock) == code
    assert said in "".join(capsys.readouterr())
    expected = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in LOCKED]
    assert osv.asked and all(path == "/v1/query" and question in expected for path, question in osv.asked)
    assert code == audit.NOBODY_ANSWERED or len(osv.asked) == len(expected)


def test_everything_that_is_installed_for_a_build_has_a_hash() -> None:
    for lock in (binary.RECIPE / "requirements.lock", binary.RECIPE / "tools.lock", audit.RECIPE):
        packages = [text for text in lock.read_text().replace("\\\n", " ").splitlines() if text and not text.lstrip().startswith("#")]
        assert packages and all("==" in text and "--hash=sha256:" in text for text in packages), lock
