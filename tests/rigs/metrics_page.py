"""The metrics page of a node, on its unix socket, and what Prometheus' own tool says of it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess

from buildtools.nodes import Node

ANSWER_S = 120
PROMTOOL = shutil.which("promtool")
MISSING = "needs promtool: install the package prometheus"


def answer(node: Node, page: str = "/metrics") -> str:
    """Returns head and body of what the page answers; the node has the setting metrics.listen = unix."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(ANSWER_S)
        sock.connect(str(node.run / "metrics.sock"))
        sock.sendall(b"GET %s HTTP/1.0\r\n\r\n" % page.encode())
        return b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode()


def figures(node: Node) -> str:
    return answer(node).partition("\r\n\r\n")[2]


def complaints(text: str) -> str:
    """Returns what `promtool check metrics` says of a page; "" for one that keeps the conventions."""
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0 or said, done
    return said
