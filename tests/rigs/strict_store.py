"""A store that speaks S3, knows GET, PUT and DELETE only, and breaks on purpose.  Standard library, in the test's process.

It checks each signature (in headers or in the query) and the hash of each body as a real one does, and writes down in `violations` whatever
a store that knows no more could not do: other methods, queries, conditions, a name that is put with a second content.

A test gives it faults by `fail(kind, method, times)`; each hits the next requests of that method:

    status:CODE:WORD    an error with that status and code       redirect:URL      a 307 to there
    cut:BYTES           the answer's body ends after so many     stall:BYTES       nothing more comes after so many
    drop                the connection is cut before any work    done-and-cut      the work is done, and there is no answer
    lose                acknowledged and not done                wrong             one byte of the body is another
    short, long         a range of fewer, of more bytes          whole             a range is answered by all of it
    page                a page of a portal, with status 200      lost-page         the same with status 404
    xml                 status 200 with an error in its body     plain             no ETag and none of the store's headers
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import hmac
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

KEY_ID, SECRET = "AKTESTKEY", "test/secret+of-a-store"
REGION = "us-east-1"
SKEW_S = 900
CLONE_NEWNET = 0x40000000
PAGE = b"<html><body>Please sign in</body></html>"


class StrictStore:
    """`objects`: what it holds, by bucket/name.  `requests`: method and path of each request that came."""

    def __init__(
        self, bucket: str = "bucket", context: ssl.SSLContext | None = None, host: str = "", namespace: Path | None = None
    ) -> None:
        """`host`: an address to listen at, "" this machine's own; `namespace`: of the network where that is."""
        self.bucket = bucket
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.violations: list[str] = []
        self.keys = {KEY_ID: SECRET}
        self.now: Callable[[], float] = time.time
        self.invisible_gets = 0  # so many GETs of a new object find nothing
        self.headers: dict[str, str] = {}  # beside its own, in each answer
        self.refuses: dict[str, str] = {}  # method -> code of a 403
        self.missing = (404, "NoSuchKey")
        self._contents: dict[str, bytes] = {}
        self._unseen: dict[str, int] = {}
        self._faults: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = _in_namespace(namespace, lambda: _Server((host or "127.0.0.1", 0), _handler(self)))
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.endpoint = f"http{'s' if context else ''}://{host or 'localhost'}:{self._server.server_port}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True)
        self._thread.start()

    def fail(self, kind: str, method: str = "GET", times: int = 1) -> None:
        with self._lock:
            self._faults += [(method, kind)] * times

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_for_end(self) -> None:
        """What stalls stays so until the store ends."""
        self._ended.wait(60)

    def fault_of(self, method: str) -> str:
        with self._lock:
            for at, (wanted, kind) in enumerate(self._faults):
                if wanted in (method, "any"):
                    del self._faults[at]
                    return kind
        return ""

    def put(self, name: str, body: bytes) -> None:
        with self._lock:
            digest = hashlib.sha256(body).digest()
            if self._contents.setdefault(name, digest) != digest:
                self.violations.append(f"{name} was put with a second content")
            if name not in self.objects:
                self._unseen[name] = self.invisible_gets
            self.objects[name] = body

    def get(self, name: str) -> bytes | None:
        with self._lock:
            if self._unseen.get(name, 0):
                self._unseen[name] -= 1
                return None
            return self.objects.get(name)

    def delete(self, name: str) -> None:
        with self._lock:
            self.objects.pop(name, None)


@contextlib.contextmanager
def strict_store(**options: Any) -> Iterator[StrictStore]:
    """A store until the block ends; what broke its rules fails the test."""
    store = StrictStore(**options)
    try:
        yield store
    finally:
        store.close()
    assert not store.violations, store.violations


def _in_namespace(namespace: Path | None, make: Callable[[], _Server]) -> _Server:
    """A socket belongs to the network namespace of the thread that makes it, for its life."""
    made: list[_Server] = []

    def enter() -> None:
        if namespace is not None:
            with namespace.open() as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), str(namespace))
        made.append(make())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, _request: object, _client: object) -> None:
        pass  # a client that went away in the middle: what the test is about


class _Refusal(Exception):
    def __init__(self, status: int, code: str, words: str = "as a test wants it") -> None:
        self.status, self.code, self.words = status, code, words


def _handler(store: StrictStore) -> type[http.server.BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"store": store})


class _Handler(http.server.BaseHTTPRequestHandler):
    store: StrictStore
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *_words: object) -> None:
        pass

    def do_any(self) -> None:
        store = self.store
        store.requests.append((self.command, self.path))
        fault = store.fault_of(self.command)
        if fault == "drop":
            return self._cut()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            name = _Check(self, body).name()
            if self.command in store.refuses:
                raise _Refusal(403, store.refuses[self.command])
            self._answer_fault(fault) or self._answer(name, body, fault)
        except _Refusal as err:
            self._error(err.status, err.code, err.words)

    do_GET = do_PUT = do_DELETE = do_POST = do_HEAD = do_any

    def _answer_fault(self, fault: str) -> bool:
        kind, _, rest = fault.partition(":")
        match kind:
            case "status":
                status, _, code = rest.partition(":")
                self._error(int(status), code)
            case "redirect":
                self._send(307, b"", {"Location": rest})
            case "page":
                self._send(200, PAGE, {"Content-Type": "text/html", "ETag": '"x"', "Last-Modified": formatdate(usegmt=True)})
            case "lost-page":
                self._send(404, PAGE, {"Content-Type": "text/html"})
            case "xml":
                self._send(200, _error_body("InternalError", "in a body"), {"ETag": '"x"', "Last-Modified": formatdate(usegmt=True)})
            case "plain":
                self._send(200, b"ok", {})
            case _:
                return False
        return True

    def _answer(self, name: str, body: bytes, fault: str) -> None:
        match self.command:
            case "GET":
                self._get(name, fault)
            case "PUT":
                if fault != "lose":
                    self.store.put(name, body)
                self._cut() if fault == "done-and-cut" else self._send(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
            case "DELETE":
                if fault != "lose":
                    self.store.delete(name)
                self._cut() if fault == "done-and-cut" else self._send(204, b"", {})

    def _get(self, name: str, fault: str) -> None:
        whole = self.store.get(name)
        if whole is None:
            raise _Refusal(*self.store.missing)
        headers = {"ETag": f'"{hashlib.md5(whole).hexdigest()}"', "Last-Modified": formatdate(usegmt=True)}
        start, end = 0, len(whole)
        status = 200
        if (ranged := self.headers.get("Range")) and fault != "whole":
            start, end = _range(ranged, len(whole))
            end += {"short": -1, "long": 1}.get(fault, 0)
            headers["Content-Range"], status = f"bytes {start}-{end - 1}/{len(whole)}", 206
        part = bytearray(whole[start:end])
        if fault == "wrong":
            part[len(part) // 2] ^= 1
        self._send(status, bytes(part), headers, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: str = "") -> None:
        kind, _, count = fault.partition(":")
        self.send_response_only(status)
        for key, value in ({"Date": formatdate(self.store.now(), usegmt=True)} | headers | self.store.headers).items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind in ("cut", "stall"):
            self.wfile.write(body[: int(count)])
            self.wfile.flush()
            if kind == "stall":
                self.store.wait_for_end()
            return self._cut()
        self.wfile.write(body)

    def _error(self, status: int, code: str, words: str = "as a test wants it") -> None:
        self._send(status, _error_body(code, words), {"Content-Type": "application/xml"})

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _error_body(code: str, words: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{words}</Message></Error>'.encode()


def _range(words: str, size: int) -> tuple[int, int]:
    first, _, last = words.removeprefix("bytes=").partition("-")
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    if start >= size:
        raise _Refusal(416, "InvalidRange")
    return start, end


class _Check:
    """Signature version 4 of a request, its body's hash, and the rules of a store that knows three methods."""

    def __init__(self, request: _Handler, body: bytes) -> None:
        self._request, self._body = request, body
        self._url = urlsplit(request.path)
        self._query = parse_qsl(self._url.query, keep_blank_values=True)

    def name(self) -> str:
        """Returns the name of the object below its bucket; raises a refusal."""
        store, request = self._request.store, self._request
        store.violations += [f"{request.command} {request.path}"] * (request.command not in ("GET", "PUT", "DELETE"))
        store.violations += [f"header {key}" for key in request.headers if key.lower().startswith("if-")]
        store.violations += [f"query {key}" for key, _ in self._query if not key.startswith("X-Amz-")]
        self._check_signature()
        bucket, _, name = unquote(self._url.path).lstrip("/").partition("/")
        if bucket != store.bucket:
            raise _Refusal(404, "NoSuchBucket")
        if not name:
            raise _Refusal(405, "MethodNotAllowed")
        return name

    def _check_signature(self) -> None:
        request, query = self._request, dict(self._query)
        if "X-Amz-Signature" in query:
            scope, signed, wanted = query["X-Amz-Credential"], query["X-Amz-SignedHeaders"], query["X-Amz-Signature"]
            stamp, digest = query["X-Amz-Date"], "UNSIGNED-PAYLOAD"
        else:
            words = dict(part.strip().partition("=")[::2] for part in request.headers.get("Authorization", "").partition(" ")[2].split(","))
            if set(words) != {"Credential", "SignedHeaders", "Signature"}:
                raise _Refusal(403, "AccessDenied")
            scope, signed, wanted = words["Credential"], words["SignedHeaders"], words["Signature"]
            stamp, digest = request.headers["x-amz-date"], request.headers["x-amz-content-sha256"]
        key_id, day, region, service, _ = scope.split("/")
        if key_id not in request.store.keys:
            raise _Refusal(403, "InvalidAccessKeyId")
        if region != REGION:
            raise _Refusal(400, "AuthorizationHeaderMalformed")
        sent = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if abs(sent - request.store.now()) > SKEW_S:
            raise _Refusal(403, "RequestTimeTooSkewed")
        if digest != "UNSIGNED-PAYLOAD" and digest != hashlib.sha256(self._body).hexdigest():
            raise _Refusal(400, "XAmzContentSHA256Mismatch")
        lines = "".join(f"{key}:{request.headers[key].strip()}\n" for key in signed.split(";"))
        pairs = sorted((quote(key, safe="-_.~"), quote(value, safe="-_.~")) for key, value in self._query if key != "X-Amz-Signature")
        canonical = [request.command, self._url.path, "&".join(f"{key}={value}" for key, value in pairs), lines, signed, digest]
        hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{day}/{region}/{service}/aws4_request\n{hashed}"
        key = f"AWS4{request.store.keys[key_id]}".encode()
        for part in (day, region, service, "aws4_request", text):
            key = hmac.digest(key, part.encode(), "sha256")
        if key.hex() != wanted:
            raise _Refusal(403, "SignatureDoesNotMatch")
