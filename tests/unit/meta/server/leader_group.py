"""Several Leader objects over logs that a test replicates by hand: leadership, commits, lost batches and read tickets are in its hands."""

from __future__ import annotations

from typing import Any

from awsomefsd.base.clock import Clocks
from awsomefsd.base.errors import NotLeading
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.replica.checkpoint_progress import CheckpointProgress
from awsomefsd.meta.server.leader import Leader
from awsomefsd.meta.server.request import Request
from tests.rigs.memory_txn import MemTxn

T0 = 1_000_000_000_000


class FakeLog:
    """One voter's view: what is committed is the cluster's, what is proposed here waits until the test decides."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self.cluster = cluster
        self.node = node
        self.leading = False
        self.handing_over = False  # a transfer of the leadership is under way: still leading, and nothing is taken
        self.leader = ""
        self.term = 0
        self.returned = 0
        self.proposed: list[c.Entry] = []
        self.tickets = self.confirmed = self.patient = 0
        self.auto = True  # commit and confirm at once
        self.first_index = 1

    @property
    def committed(self) -> int:
        return len(self.cluster.entries)

    def propose(self, batch: list[c.Entry]) -> None:
        if not self.leading or self.handing_over:
            raise NotLeading("" if self.leading else self.leader)
        for entry in batch:
            entry.index = self.committed + len(self.proposed) + 1
            entry.term = self.term
            self.proposed.append(entry)

    def ready(self) -> list[c.Entry]:
        if self.auto and self.leading:
            self.commit()
        found = self.cluster.entries[self.returned :]
        self.returned = self.committed
        return [c.entry_decode(c.entry_encode(entry)) for entry in found]

    def commit(self) -> None:
        self.cluster.entries += self.proposed
        self.proposed = []

    def read(self, index: int, count: int, bytes_max: int) -> list[bytes]:
        return [c.entry_encode(entry) for entry in self.cluster.entries[index - 1 : index - 1 + count]]

    def request_read(self, *, patient: bool = False) -> int:
        if not self.leading:
            raise NotLeading(self.leader)
        self.tickets += 1
        self.patient += patient
        return self.tickets

    def reads_confirmed(self) -> int:
        if self.auto and self.leading:
            self.confirmed = self.tickets
        return self.confirmed

    def next_deadline_ns(self) -> int | None:
        return self.cluster.now


class FakeReplica:
    def __init__(self, log: FakeLog) -> None:
        self.log = log
        self.machine = Machine(MemTxn())
        self.checkpoint_progress = CheckpointProgress()

    def propose(self, batch: list[c.Entry]) -> None:
        self.log.propose(batch)

    def ready(self) -> list[tuple[c.Entry, m.Reply]]:
        return [(entry, self.machine.apply(entry)) for entry in self.log.ready()]

    def commit_due_ns(self) -> int | None:
        return None

    def pass_time(self, now_ns: int) -> None:
        pass

    def figures(self) -> dict[str, int | float | str]:
        return {}


class Host:
    """What a leader asks of its process."""

    def device_paths(self) -> dict[str, str]:
        return {}

    def transport_figures(self) -> dict[str, int]:
        return {}

    def address_of(self, node: str) -> str:
        return f"/{node}"


class Voter:
    def __init__(self, cluster: Cluster, node: str) -> None:
        self.log = FakeLog(cluster, node)
        self.replica = FakeReplica(self.log)
        self.leader = Leader(
            self.replica,  # type: ignore[arg-type]
            answer,
            cluster_uuid="cluster",
            site=1,
            host=Host(),
            clocks=Clocks(lambda: cluster.now, lambda: cluster.now, lambda: cluster.now),
        )

    def turn(self) -> None:
        self.leader.run()
        self.leader.tick()


class Cluster:
    """`lead(node)` makes one lead in the next term; what the last one had proposed is lost unless it was committed."""

    def __init__(self, count: int = 3) -> None:
        self.now = T0
        self.term = 0
        self.entries: list[c.Entry] = []
        self.voters = {f"n{number}": Voter(self, f"n{number}") for number in range(1, count + 1)}
        self.lead("n1")
        wire = self.wire("n1", 0)
        for command in (c.Init("cluster", 1), c.AddDevice("d", 1 << 30, 1 << 22, 64, 1 << 20), c.CreateVolume("vol", "uuid")):
            assert not isinstance(wire.ask(m.Propose(0, 0, 0, [], command)), m.Failed)

    def lead(self, node: str) -> Voter:
        self.term += 1
        for voter in self.voters.values():
            voter.log.leading = voter.log.handing_over = False
            voter.log.leader, voter.log.term = node, self.term
            voter.log.proposed = []
            voter.log.confirmed = -1
            voter.log.tickets = 0
        self.turn()  # as Raft.serving: it leads once it has applied all that was committed
        self.voters[node].log.leading = True
        self.turn()
        return self.voters[node]

    def turn(self) -> None:
        for voter in self.voters.values():
            voter.turn()

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)

    def wire(self, node: str, mount: int = 5, number: int = 0, client: int = 0) -> Wire:
        return Wire(self, self.voters[node], mount, number, client)


class Wire:
    """A connection; answers are collected.  Implements waiting.Origin."""

    def __init__(self, cluster: Cluster, voter: Voter, mount: int, number: int, client: int) -> None:
        self.cluster = cluster
        self.voter = voter
        self.mount = mount
        self.calls = 0
        self.answers: dict[int, m.Reply] = {}
        self.told: list[m.Reply] = []
        self.greeting = self.ask(m.Hello(m.PROTOCOL_VERSION, mount, 0, number, client))

    def answer(self, call: int, reply: m.Reply) -> None:
        if not call:
            self.told.append(reply)
            return
        assert call not in self.answers, "answered twice"
        self.answers[call] = reply

    def send(self, body: m.Body) -> int:
        self.calls += 1
        self.voter.leader.handle(Request(self, self.calls, body, 100))
        return self.calls

    def ask(self, body: m.Body) -> m.Reply | None:
        """One request, one turn; None if it was not answered."""
        call = self.send(body)
        self.voter.turn()
        return self.answers.get(call)

    def open(self, mount: int | None = None, unique: int = 1, **fields: Any) -> m.SessionOpened:
        command = c.OpenSession(mount or self.mount, 1, f"host{self.mount}", "boot", 1, **fields)
        reply = self.ask(m.Propose(unique, 0, 0, [], command))
        assert isinstance(reply, m.SessionOpened), reply
        return reply

    def close(self) -> None:
        self.voter.leader.drop_origin(self)
