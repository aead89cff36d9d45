"""A proxy for tests that writes down what it was asked for: it forwards requests of http, and tunnels those of https (CONNECT)."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit


class StrictProxy:
    """`asked`: method and target of each request.  `refuses`: a status for all of them; 0: none."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refuses = 0
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def strict_proxy() -> Iterator[StrictProxy]:
    proxy = StrictProxy()
    try:
        yield proxy
    finally:
        proxy.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: StrictProxy
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *_words: object) -> None:
        pass

    def _refused(self) -> bool:
        self.proxy.asked.append((self.command, self.path))
        if self.proxy.refuses:
            self.send_response(self.proxy.refuses)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
        return bool(self.proxy.refuses)

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refused():
            return
        parts = urlsplit(self.path)
        onward = http.client.HTTPConnection(parts.netloc, timeout=30)
        headers: dict[str, Any] = {name: value for name, value in self.headers.items() if name.lower() != "proxy-connection"}
        onward.request(self.command, f"{parts.path}{'?' + parts.query if parts.query else ''}", body or None, headers)
        answer = onward.getresponse()
        raw = answer.read()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
        onward.close()

    do_GET = do_PUT = do_DELETE = _forward

    def do_CONNECT(self) -> None:
        if self._refused():
            return
        host, _, port = self.path.rpartition(":")
        onward = socket.create_connection((host, int(port)), 30)
        self.send_response_only(200)
        self.end_headers()
        back = threading.Thread(target=_pump, args=(onward, self.connection), daemon=True)
        back.start()
        _pump(self.connection, onward)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while raw := source.recv(65_536):
            target.sendall(raw)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
