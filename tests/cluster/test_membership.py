"""Real daemons that were made by init and join: voters come, are wiped, die and are replaced, and nobody types a command for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.meta.api.messages import GetStatus, Status
from tests.bench.voter_load import Client
from tests.rigs.voter_daemons import WAIT_S, await_commands, awaited, free_ports

STALL_S = 0.3
TRIES = 6


class Machine:
    """`number` 0 founds."""

    def __init__(self, directory: Path, number: int, ports: tuple[int, int]) -> None:
        self.directory, self.name = directory / f"n{number}", f"n{number}"
        self.directory.mkdir()
        self.state, self.run = self.directory / "state", self.directory / "run"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("AWSOMEFSD_")} | {
            "AWSOMEFSD_STATE_DIR": str(self.state), "AWSOMEFSD_RUN_DIR": str(self.run), "AWSOMEFSD_CLUSTER_NAME": self.name,
            "AWSOMEFSD_CLUSTER_LISTEN": f"127.0.0.1:{ports[0]}", "AWSOMEFSD_METADATA_LISTEN": f"127.0.0.1:{ports[1]}",
            "AWSOMEFSD_CLUSTER_DISCOVERY": "false", "AWSOMEFSD_CLUSTER_VOTER_REPLACE_AFTER": "3s",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            argv = [sys.executable, "-m", "awsomefsd", "run"]
            self.process = subprocess.Popen(argv, env=self.env, cwd=self.directory, stdout=log, stderr=log)

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(WAIT_S)
            self.process = None

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        await_commands(self.process, self.run / "admin.sock")
        argv = [sys.executable, "-m", "awsomefsd", *words]
        return subprocess.run(argv, env=self.env, cwd=self.directory, capture_output=True, text=True, timeout=WAIT_S, check=False)

    def cli(self, *words: str, accept: tuple[int, ...] = (0,)) -> str:
        done = self._run(*words)
        assert done.returncode in accept, done.stdout + done.stderr
        return done.stdout

    def failed(self, *words: str) -> str:
        """What a command says that ends with 1."""
        done = self._run(*words)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    def figures(self) -> dict[str, Any]:
        """Of its own metadata service; {} if it has none, or it does not answer."""
        try:
            client = Client(str(self.run / "meta.sock"), 0)
        except OSError:
            return {}
        with client.sock:
            try:
                reply = client.ask(GetStatus())
            except OSError:
                return {}
        return reply.figures if isinstance(reply, Status) else {}

    def leads(self) -> bool:
        return self.process is not None and self.figures().get("leading") == 1


class Machines:
    def __init__(self, directory: Path, count: int) -> None:
        ports = free_ports(2 * count)
        self.all = [Machine(directory, number, (ports[2 * number], ports[2 * number + 1])) for number in range(count)]
        self.token = ""

    def found(self) -> None:
        first = self.all[0]
        first.cli("init")
        first.start()
        awaited("the first node", first.leads)
        self.token = first.cli("token", "create", "--role", "node", "--uses", "9").split()[-1]

    def join(self, number: int) -> None:
        self.all[number].cli("join", self.token)
        self.all[number].start()

    def leader(self) -> Machine:
        found: Machine = awaited("a leader", lambda: next((one for one in self.all if one.leads()), None))
        return found

    def voters(self) -> set[str]:
        rows = json.loads(self.leader().cli("node", "ls", "-o", "json", accept=(0, 1)) or "[]")
        return {row["name"] for row in rows if row.get("member") == "voter"}

    def await_voters(self, *names: str) -> None:
        awaited(f"voters {names}", lambda: self.voters() == {*names}, 0.2)

    def close(self) -> None:
        for one in self.all:
            one.end()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, 4)
    try:
        yield made
    finally:
        made.close()


def handed_over(machines: Machines, figures: list[str]) -> tuple[Machine, Machine]:
    """Who led, and whose daemon was ended by SIGTERM, and who leads now: after one election, which the leader asked for.  A busy machine
    may bring about another one just then; the try is void then, but not so many in a row."""
    for _ in range(TRIES):
        leader = machines.leader()
        term = leader.figures().get("term", 0)
        began = time.monotonic()
        assert leader.process is not None
        leader.process.send_signal(signal.SIGTERM)
        others = [one for one in machines.all[:3] if one is not leader]
        awaited("the next leader", lambda others=others: any(one.leads() for one in others), 0.002)
        took = time.monotonic() - began
        leader.process.wait(WAIT_S)
        leader.process = None
        second = machines.leader()
        if second.figures().get("term") == term + 1:
            figures.append(f"another node leads after SIGTERM of the leader's daemon: {took:.3f} s (to reach: {STALL_S} s)")
            return leader, second
        leader.start()
        awaited("it to follow", lambda leader=leader: leader.figures().get("applied", 0) == machines.leader().figures().get("applied"))
    raise AssertionError(f"{TRIES} times it was not one election that the leader asked for")


def test_voters_come_are_wiped_die_and_are_replaced(machines: Machines, figures: list[str]) -> None:
    machines.found()
    began = time.monotonic()
    machines.join(1)
    machines.join(2)
    machines.await_voters("n0", "n1", "n2")
    figures.append(f"from one node to three voters, two joins with it: {time.monotonic() - began:.1f} s")
    machines.leader().cli("volume", "create", "one")

    victim = next(one for one in machines.all[:3] if not one.leads())
    victim.end()
    shutil.rmtree(victim.state / "meta")
    victim.start()
    awaited("it has the state again", lambda: victim.figures().get("applied", 0) == machines.leader().figures().get("applied"))
    machines.await_voters("n0", "n1", "n2")

    leader, second = handed_over(machines, figures)
    assert "one" in second.cli("volume", "ls")

    machines.token = second.cli("token", "create", "--role", "node", "--uses", "0").split()[-1]  # the first one names the first node only
    machines.join(3)
    machines.await_voters(*({"n0", "n1", "n2", "n3"} - {leader.name}))
    leader.start()
    awaited("the one that was replaced is told so", lambda: list((leader.state / "meta").glob("journal.aside.*")))
    assert "one" in leader.cli("volume", "ls"), "it follows the leader like any node"
