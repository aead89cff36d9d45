"""The socket of the page: HTTP/1.1, one request a connection, on threads of its own; TLS where others reach the address.

What a stranger can cost is bounded: connections and their time (node/health/bounded_http.py), bytes of a head, bytes of a body.  A request
that is not plain HTTP (two Hosts, a body of unknown length, lines that are no headers) is refused before anybody looks at it.

The certificate is the node's own, signed by the cluster's authority (cluster/pki), and read again when its files change.
"""

from __future__ import annotations

import http.client
import io
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from awsomefsd.base.errors import ConfigError
from awsomefsd.config import ports
from awsomefsd.node.health.bounded_http import BoundedHttpServer
from awsomefsd.ui import web
from awsomefsd.ui.site import BODY_BYTES_MAX
from awsomefsd.ui.web import PageRequest, PageResponse

logger = logging.getLogger(__name__)
CONNECTIONS_MAX = 16
CONNECTION_S = 30.0  # more than two questions to the daemon take
READ_S = 10.0  # of one read or write
HEAD_BYTES_MAX = 16_384
TARGET_BYTES_MAX = 1_024


class _TooLong(http.client.HTTPException):
    """A head or body is longer than its bound; the base class answers 431."""


class _Bounded(io.BufferedIOBase):
    """Reads of a connection, `left` bytes at most."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain
        self.left = HEAD_BYTES_MAX

    def readable(self) -> bool:
        return True

    def readline(self, size: int | None = -1) -> bytes:
        line: bytes = self._plain.readline(self.left + 1)
        return self._counted(line)

    def read(self, size: int | None = -1) -> bytes:
        part: bytes = self._plain.read(min(self.left, size if size is not None and size >= 0 else self.left))
        return self._counted(part)

    def _counted(self, part: bytes) -> bytes:
        if len(part) > self.left:
            raise _TooLong(f"more than {HEAD_BYTES_MAX} bytes")
        self.left -= len(part)
        return part

    def close(self) -> None:
        self._plain.close()
        super().close()


class _Connection(BaseHTTPRequestHandler):
    server: UiServer
    timeout = READ_S
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        self.rfile: Any = _Bounded(self.rfile)

    def handle(self) -> None:
        self.command = ""
        try:
            self.raw_requestline = self.rfile.readline()
            if self.raw_requestline and self.parse_request():
                self._answer()
        except _TooLong:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except (TimeoutError, ConnectionError, ssl.SSLError) as err:
            logger.debug("a connection to the page ended", extra={"reason": str(err)})

    def handle_expect_100(self) -> bool:
        self.send_error(HTTPStatus.EXPECTATION_FAILED)
        return False

    def _answer(self) -> None:
        if refusal := self._refused():
            self._send(refusal)
            return
        length = int(self.headers.get("Content-Length", "0"))
        self.rfile.left = length
        body = self.rfile.read(length)
        if len(body) < length:
            return  # it went away
        headers = {name.lower(): value for name, value in self.headers.items()}
        secure = isinstance(self.request, ssl.SSLSocket)
        request = PageRequest(self.command, self.path, headers, body, str(self.client_address[0]), secure)
        try:
            self._send(self.server.answer(request))
        except OSError:
            raise
        except Exception:
            logger.exception("a page failed", extra={"path": request.path})
            self._send(web.plain(500, "a bug in the page; the log has the details"))

    def _refused(self) -> PageResponse | None:
        """Returns the answer to a request that is not as HTTP wants it, or not as small as we want it."""
        one_of = [name for name in ("Host", "Content-Length", "Cookie", "Origin") if len(self.headers.get_all(name, [])) > 1]
        length = self.headers.get("Content-Length", "0")
        plain = self.path.isascii() and self.path.isprintable() and self.path.startswith("/") and "Host" in self.headers
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1") or one_of or self.headers.defects or not plain:
            return web.plain(400, "this is no plain HTTP request")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()) or len(length) > 9:
            return web.plain(411, "a body has a length")
        if int(length) > BODY_BYTES_MAX:
            return web.plain(413, f"a body has {BODY_BYTES_MAX} bytes at most")
        if len(self.path) > TARGET_BYTES_MAX:
            return web.plain(414, "the address is too long")
        return None

    def _send(self, response: PageResponse) -> None:
        self.request_version = self.protocol_version  # HTTP/0.9 would get a body without a head
        self.send_response_only(response.status)
        own = [("Content-Type", response.kind), ("Content-Length", str(len(response.body))), ("Connection", "close")]
        for name, value in (*own, *web.SECURITY.items(), *response.headers):
            assert value.isprintable() and value.isascii(), name  # nothing that others chose goes into a header
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def send_error(self, code: int, *_words: str | None) -> None:  # type: ignore[override]
        """Answers what the base class refuses; what was sent is not repeated."""
        status = HTTPStatus(code)
        self.command = ""
        self._send(web.plain(int(status), status.phrase))

    def log_message(self, format: str, *args: object) -> None:
        logger.debug("request of the page", extra={"request": format % args})


class NodeCertificate:
    """The TLS context of this node's certificate; calling it reads the files again if they changed.  Raises ConfigError."""

    def __init__(self, certificate: str, key: str) -> None:
        self._paths = certificate, key
        self._seen: object = None
        self._context: ssl.SSLContext | None = None

    def __call__(self) -> ssl.SSLContext:
        try:
            seen = [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, self._paths)]
            if self._context is None or seen != self._seen:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.set_alpn_protocols(["http/1.1"])
                context.load_cert_chain(*self._paths)
                self._context, self._seen = context, seen
        except OSError as err:
            if self._context is None:
                raise ConfigError(
                    f"the page cannot have TLS: {err.filename or self._paths[0]}: {err.strerror or err}; "
                    "run as root on a node of a cluster, or listen on 127.0.0.1"
                ) from err
        return self._context


class UiServer(BoundedHttpServer):
    """The page on a listening socket; `tls` returns the context of the next connection, None: plain HTTP.

    `start` serves on a thread, `close` ends it and waits for that.
    """

    def __init__(
        self, listener: socket.socket, answer: Callable[[PageRequest], PageResponse], tls: Callable[[], ssl.SSLContext] | None
    ) -> None:
        super().__init__(listener, _Connection, CONNECTIONS_MAX, CONNECTION_S)
        self.answer = answer
        self._tls = tls
        self._thread = threading.Thread(target=self.serve_forever, name="ui", daemon=True)

    def get_request(self) -> tuple[Any, Any]:
        """Called by the thread that accepts.  The handshake is the connection's own thread's."""
        connection, address = self.socket.accept()
        if self._tls is None:
            return connection, address
        try:
            return self._tls().wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address
        except OSError:
            connection.close()
            raise

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        logger.debug("a connection to the page failed", exc_info=True)


def listen(setting: str, address: str) -> socket.socket:
    """Returns a socket that listens at "IP:PORT".  Raises ConfigError, which names the setting and who has the port."""
    host, _, port = address.rpartition(":")
    try:
        return socket.create_server((host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as err:
        raise ConfigError(f"{ports.taken(setting, address, err)}; choose another address") from err
