"""Nodes that found a cluster over real sockets on loopback: each is the founding driver, and after it a stand-in for a running daemon.

The stand-in is the control port with the founding door over a state machine, whose entries are in a file, so that it can be killed too.
`run_node` is one node on an event loop of its own process (`spawn`) or one of many in this one.
"""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from awsomefsd.base import durable, failpoints, identity
from awsomefsd.base.errors import FsError, NotLeading
from awsomefsd.cluster.addresses import advertised
from awsomefsd.cluster.control.server import ControlServer, ServerTls
from awsomefsd.cluster.founding.admit import FoundingAdmission
from awsomefsd.cluster.founding.driver import FoundingDriver
from awsomefsd.cluster.founding.files import FoundingFiles
from awsomefsd.cluster.founding.founder import enter_founder
from awsomefsd.cluster.pki import ca, founding_token
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.cluster.pki.signing import Signing
from awsomefsd.config.settings import Settings, load
from awsomefsd.meta.api.messages import Failed, Propose
from awsomefsd.meta.api.messages.nodes import ListNodes, ListTokens
from awsomefsd.meta.machine.queries import answer
from tests.rigs.machine_driver import Drive

WAIT_S = 120


def settings_of(directory: Path, port: int) -> Settings:
    environ = {
        "AWSOMEFSD_STATE_DIR": str(directory),
        "AWSOMEFSD_CLUSTER_LISTEN": f"127.0.0.1:{port}",
        "AWSOMEFSD_CLUSTER_NAME": directory.name,
    }
    return load(environ=environ)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Member:
    """A node of the cluster.  Only the founder has the metadata; the others send everybody there."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.node = identity.load(settings.state_dir)
        self._files = PkiFiles(settings.state_dir)
        self._lock = threading.Lock()
        self._entries = settings.state_dir / "entries"
        self._drive = Drive()
        self._drive.now = time.time_ns()
        if self.node.founder:
            if self._entries.exists():
                with self._entries.open("rb") as file:
                    while (raw := file.peek(1)) and raw:  # type: ignore[attr-defined]
                        self._drive.apply(pickle.load(file))
            enter_founder(settings, self.node, self.propose)
        self.signing = Signing(self.node.cluster, 0, self.ask)

    def ask(self, body: Any) -> Any:
        with self._lock:
            if not self.node.founder:
                raise NotLeading("founder")
            if isinstance(body, Propose):
                with self._entries.open("ab") as file:
                    pickle.dump(body.command, file)
                reply = self._drive.apply(body.command)
            else:
                self._drive.machine.flush()
                reply = answer(self._drive.machine, body)
            if isinstance(reply, Failed):
                raise FsError(reply.errno, reply.detail)
            return reply

    def advance(self, ms: int) -> None:
        """The cluster's time passes."""
        with self._lock:
            self._drive.now += ms * 1_000_000

    def propose(self, command: Any) -> Any:
        return self.ask(Propose(0, 0, 0, [], command))

    def _leader_at(self, _node: str) -> str:
        nodes = durable.read_json(self.settings.state_dir / "endpoints.json", {}).get("nodes", {})
        return next((row["control"] for uuid, row in nodes.items() if uuid != self.node.node), "")

    def server(self) -> ControlServer:
        files = self._files
        door = FoundingAdmission(
            self.node.node, self.ask, self.signing, self._leader_at, lambda to: advertised(self.settings, self.settings.cluster.listen, to)
        )  # fmt: skip
        return ControlServer(ServerTls(files.bundle, files.certificate, files.key), {}, self.signing.member, self._leader_at, door)


async def run_node(
    settings: Settings,
    token: founding_token.FoundingToken,
    entered: Callable[[Member], object],
    started: Callable[[FoundingDriver], object] = lambda driver: None,
    found: Callable[[], list[str]] = list,
) -> None:
    """Until cancelled."""
    if not identity.identity_path(settings.state_dir).exists():
        driver = FoundingDriver(settings, token, FoundingFiles(settings.state_dir, token), found, wall_ms)
        started(driver)
        await driver.run()
    member = Member(settings)
    entered(member)
    host, port = settings.cluster.listen.rsplit(":", 1)
    await member.server().serve(host, int(port))


class Group:
    """Nodes of one token in this process."""

    def __init__(self, directory: Path, token: founding_token.FoundingToken, ports: list[int]) -> None:
        directory.mkdir()
        self.token = token
        self.settings = [settings_of(directory / f"n{number}", port) for number, port in enumerate(ports)]
        self.members: dict[int, Member] = {}
        self.drivers: dict[int, FoundingDriver] = {}
        self._changed = trio.Event()

    def _enter(self, number: int, member: Member) -> None:
        self.members[number] = member
        self._changed.set()
        self._changed = trio.Event()

    def start(self, nursery: trio.Nursery, number: int, found: Callable[[], list[str]] = list) -> trio.CancelScope:
        scope = trio.CancelScope()

        async def live() -> None:
            with scope:
                await run_node(
                    self.settings[number],
                    self.token,
                    lambda member: self._enter(number, member),
                    lambda driver: self.drivers.__setitem__(number, driver),
                    found,
                )

        nursery.start_soon(live)
        return scope

    async def formed(self, count: int) -> None:
        with trio.fail_after(WAIT_S):
            while len(self.members) < count:
                await self._changed.wait()

    def check(self, count: int) -> None:
        """Exactly one cluster, every node in it, each once."""
        one_cluster([settings.state_dir for settings in self.settings[:count]], self.token)
        [founder] = [member for member in self.members.values() if member.node.founder]
        rows = founder.ask(ListNodes()).nodes
        assert {row.node for row in rows} == {member.node.node for member in self.members.values()} and len(rows) == count
        [held] = founder.ask(ListTokens()).tokens
        assert held.uses_left == self.token.nodes - count, "each node used the token once"


def one_cluster(directories: list[Path], token: founding_token.FoundingToken) -> None:
    nodes = [identity.load(directory) for directory in directories]
    assert {one.cluster for one in nodes} == {token.cluster_uuid}
    assert sum(one.founder for one in nodes) == 1
    bundles = {(directory / "pki" / "ca.pem").read_text() for directory in directories}
    assert len(bundles) == 1
    authorities = ca.load_bundle(bundles.pop())
    for directory in directories:
        assert ca.issuer_of(ca.load((directory / "pki" / "node.pem").read_text()), authorities)


# --- nodes as processes -----------------------------------------------------------------------------------------------------------


def _process(directory: Path, port: int, text: str, points: str) -> None:
    failpoints.configure(points, "")
    settings = settings_of(directory, port)

    def entered(_member: Member) -> None:
        (directory / "entered").touch()

    trio.run(run_node, settings, founding_token.parse(text), entered)


def spawn(directory: Path, port: int, token: founding_token.FoundingToken, points: str) -> Any:
    context = multiprocessing.get_context("forkserver")  # a fork of this process would inherit its threads' locks
    context.set_forkserver_preload(["tests.cluster.founding_rig"])
    process = context.Process(target=_process, args=(directory, port, founding_token.print_token(token), points))
    process.start()
    return process
