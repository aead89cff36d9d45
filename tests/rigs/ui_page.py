"""The running command `awsomefsd ui`, asked as a browser asks."""

from __future__ import annotations

import http.client
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from buildtools.nodes import Node

WAIT_S = 60.0


class Page:
    """A page of a node, and a browser of few words.  `link` signs in."""

    def __init__(self, link: str, node: Node) -> None:
        self.link = link
        self.address = link.partition("/sign-in#")[0]
        scheme, _, place = self.address.partition("://")
        self.tls = scheme == "https"
        self.host, self.port = place.rpartition(":")[0], int(place.rpartition(":")[2])
        self.bundle = node.state / "pki" / "ca.pem"
        self.cookie = ""

    def ask(self, path: str, method: str = "GET", body: str = "", host: str = "") -> tuple[http.client.HTTPResponse, str]:
        if self.tls:
            trust = ssl.create_default_context(cafile=str(self.bundle))
            trust.check_hostname = False
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(self.host, self.port, context=trust, timeout=WAIT_S)
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=WAIT_S)
        connection.request(method, path, body or None, {"Cookie": self.cookie} | ({"Host": host} if host else {}))
        answer = connection.getresponse()
        return answer, answer.read().decode()

    def enter(self) -> http.client.HTTPResponse:
        answer, _ = self.ask("/sign-in", "POST", f"code={self.link.partition('#')[2]}")
        self.cookie = str(answer.getheader("Set-Cookie", "")).partition(";")[0]
        return answer


class CommandPage(Page):
    """The page of a running command."""

    def __init__(self, process: subprocess.Popen[str], node: Node) -> None:
        self.process = process
        first = self.said()
        super().__init__(self.said(), node)
        assert self.address in first

    def said(self) -> str:
        """Returns the next line that the command prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def serving(node: Node, listen: str, *options: str) -> Iterator[CommandPage]:
    process = subprocess.Popen(
        [*node.command, "ui", "--listen", listen, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=node.environment(),
    )
    try:
        yield CommandPage(process, node)
    finally:
        process.kill()
        process.communicate()
