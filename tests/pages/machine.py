"""A machine at which the commands of pages are typed: a node in its network namespace, and a shell of its own that stays."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time

from buildtools import procs
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from buildtools.say import CHECKOUT
from tests.pages.page import Command, missing

ANSWER_S = 120.0
LOOK_AGAIN_S = 0.5
# They look and change nothing: typed again until they show what the page shows, as people do.
LOOKS = ("status", "node ls", "device show", "device ls", "mount", "meta status")


class Machine:
    """`places` is what this machine has where the page names something that each reader has to put in."""

    def __init__(self, cluster: Cluster, node: Node, places: dict[str, str]) -> None:
        self.node, self.places = node, places
        self.home = node.directory / "home"
        for folder in ("srv", "bin"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        program = self.home / "bin" / "awsomefsd"
        program.write_text(f'#!/bin/sh\nexec {" ".join(node.program)} "$@"\n')
        program.chmod(0o755)
        self._log = (self.home / "told").open("ab+")
        node.settings |= {"AWSOMEFSD_CLUSTER_NAME": node.directory.name}
        path = f"{self.home / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin"
        own = {"PATH": path, "AWSOMEFSD_STATE_DIR": str(node.state), "AWSOMEFSD_RUN_DIR": str(node.run), procs.MARK: str(node.directory)}
        words = [*cluster.network.entering(cluster.machine(node)), "bash", "--noprofile", "--norc"]
        self._shell = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=self.home, env=node.environment() | own
        )

    def close(self) -> None:
        """Ends the shell; what it started runs on, and is ended with the node."""
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._shell.kill()
        self._shell.wait()
        for file in (self._shell.stdin, self._shell.stdout, self._log):
            file.close()

    def await_daemon(self) -> None:
        """Waits until a daemon listens: a machine has long booted when somebody signs in to it."""
        await_true("a daemon", (self.node.run / "admin.sock").exists, ANSWER_S)

    def run(self, text: str) -> None:
        """What is not on the page."""
        status = self._run(text, [])
        assert status == 0, self._told(0, [], 0)

    def put_in(self, text: str) -> str:
        for page, here in self.places.items():
            text = re.sub(rf"(?<!\S){re.escape(page)}", here, text)
        return text

    def type(self, command: Command, instead: str = "") -> str:
        """Types a command, or what stands for it here, and returns what was shown.  It has to succeed and to show what the page shows."""
        text = self.put_in(instead or command.text)
        if "# in the checkout" in text:
            text = f"cd {CHECKOUT}; {text}"
        shown = [self.put_in(line) for line in command.shown]
        looks = command.plain.partition(" ")[2].startswith(LOOKS)
        deadline = time.monotonic() + ANSWER_S
        while True:
            at = self._log.seek(0, os.SEEK_END)
            status = self._run(text, command.typed)
            told = self._told(at, shown, 0 if looks or status != command.status else deadline)
            wrong = missing(shown, told)
            if status == command.status and not wrong:
                return told
            if not looks or time.monotonic() > deadline:
                break
            time.sleep(LOOK_AGAIN_S)  # what it shows is the state of a cluster, which nobody tells us of
        raise AssertionError(f"{command}\n{text}\nended with {status} on {self.node.directory.name}, without {wrong}; it showed\n{told}")

    def _run(self, text: str, typed: list[str]) -> int:
        """Runs it in the shell itself, so that directories, variables and jobs stay."""
        assert self._shell.stdin is not None and self._shell.stdout is not None
        script, typing = self.home / "command", self.home / "typed"
        script.write_text(f"{text}\n")
        typing.write_text("".join(f"{line}\n" for line in typed))
        self._shell.stdin.write(f". {script} < {typing} >> {self._log.name} 2>&1; echo $?\n".encode())
        self._shell.stdin.flush()
        ready = select.select([self._shell.stdout], [], [], ANSWER_S)[0]
        assert ready, f"no end of {text} within {ANSWER_S:.0f} s"
        answer = self._shell.stdout.readline()
        assert answer.strip(), f"the shell has ended at {text}"
        return int(answer)

    def _told(self, at: int, shown: list[str], deadline: float) -> str:
        """Waits for what a job in the background shows later."""
        while True:
            told = os.pread(self._log.fileno(), 1 << 20, at).decode(errors="replace")
            if not missing(shown, told) or time.monotonic() > deadline:
                return told
            time.sleep(0.05)  # the writer is a job of the shell: nobody tells us of its lines
