"""A mount: a worker that uses the production client core and lease core over simulated connections, and its successors.

What outlives a worker (the keeper's shared memory) is in `Mount`: the mount's id, its counter of requests, and those that were executing.
A successor gets all of that, opens the session as worker n + 1, and sends what was executing again under the same ids.  A machine that
dies takes the mount with it; the next boot is another mount (id) with another boot id.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from awsomefsd.base.codec import encode
from awsomefsd.base.errors import FsError
from awsomefsd.base.frames import FrameReader, frame
from awsomefsd.base.limits import CLIENT_GREETING_MS
from awsomefsd.base.types import BACKGROUND_BIT
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.client import GREETING_TIMEOUT_S, decode_answer
from awsomefsd.meta.client.core import HELLO_CALL, ClientCore, Outstanding
from awsomefsd.meta.client.session_lease import RenewalTimer
from tests.sim.machines.clock import SimClock
from tests.sim.machines.links import End, Link
from tests.sim.machines.network import Network
from tests.sim.mounts.shared_mount import Sharing
from tests.sim.world import MS, SECOND, World

SEEN_ALL = (1 << 62) - 1  # readers compare identities, as production workers do
_SESSION_BIT = 1 << 61
Resume = Callable[[Any, "BaseException | None"], None]


class Host:
    """The machine of one mount."""

    def __init__(
        self, world: World, network: Network, name: str, nodes: list[Any], volume: int, checks: Any, shared: bool = False,
        uncached: bool = False,
    ) -> None:
        self.world, self.network, self.name, self.nodes, self.volume, self.checks = world, network, name, nodes, volume, checks
        self.shared, self.uncached = shared, uncached
        self.clock = SimClock(world, name)
        self.boots = 0
        self.mount: Mount | None = None
        self.stopping = False

    def boot(self) -> Mount:
        self.boots += 1
        if self.mount is not None:
            self.checks.leases.device.drain(self.mount)
        number = self.world.dice(f"mounts/{self.name}").getrandbits(48) | 1
        self.mount = self.make_mount(number)
        self.mount.start_worker()
        return self.mount

    def make_mount(self, number: int) -> Mount:
        return Mount(self, number)


class Mount:
    """`life` counts the deaths of its workers: what they had scheduled is void."""

    def __init__(self, host: Host, number: int) -> None:
        self.host, self.number = host, number
        self.world = host.world
        self.life = 0
        self.up = False
        self.workers = 0
        self.unique = 0
        self.dead = False  # the machine died
        self.dice = self.world.dice(f"mount/{host.name}/{host.boots}")
        self.executing: dict[int, tuple[Callable[[], m.Body], Resume]] = {}  # unique → how to ask again, who waits
        self.reading: dict[int, tuple[m.Body, Resume]] = {}
        self._queries = 0
        self._unacknowledged: set[int] = set()  # answered, and the service was not told yet that nobody needs the result
        self.session = self.epoch = 0
        self._final: set[int] = set()
        self.last_answered = 0  # unique of the proposal whose answer is being told
        self._waiting: list[int] = []  # uniques that wait for a session
        self._tick_at = -1
        self.paused_until_ns = 0
        self.sharing = Sharing(self)

    # --- life ----------------------------------------------------------------------------------------------------------------
    def start_worker(self) -> None:
        self.workers += 1
        self.up = True
        self.session = self.epoch = 0
        names = [node.name for node in self.host.nodes]
        self.dice.shuffle(names)
        self.core = ClientCore(self.number, names, self._write, self.host.clock.boot_ns)
        self.lease = RenewalTimer()
        self.sharing.start_worker()
        self._link: Link | None = None
        self._tries = 0  # to connect
        self._end: End | None = None
        self._opening = False
        self._waiting = sorted(self.executing)
        for unique in sorted(self._unacknowledged):
            self.core.ack_inherited(unique)
        self._unacknowledged.clear()
        self._connect()
        self._open_session()
        for number in sorted(self.reading):
            self._read(number)
        self._arm()

    def kill_worker(self, after_ns: int) -> None:
        """A successor comes."""
        self._stop("is killed")
        self.world.after(after_ns, self.start_worker, owner=self)

    def die(self) -> None:
        """The machine is gone, and with it what was executing: unknown outcomes."""
        self._stop("dies with its machine")
        self.dead = True
        self.sharing.died()

    def _stop(self, how: str) -> None:
        self.world.say(f"{self.host.name}: worker {self.workers} {how}")
        self.up = False
        self.life += 1
        self._tick_at = -1
        if self._link is not None and self._end is not None:
            self._link.died(self._end, tells=self.dice.random() < 0.5)
            self._link = self._end = None

    # --- the connection --------------------------------------------------------------------------------------------------------
    def _connect(self) -> None:
        """One try at a time, as in the worker: two would step over the endpoints together, and miss the one that leads."""
        if self._link is None:
            self._tries += 1
            delay = max(self.core.connect_ns - self.host.clock.boot_ns(), 0)
            self.world.after(delay + MS // 10, self._dial, self._tries, owner=self)

    def _dial(self, number: int) -> None:
        if self._link is not None or number != self._tries:
            return
        node = next(node for node in self.host.nodes if node.name == self.core.endpoint)
        network, here = self.host.network, self.host.name
        if not (node.up and network.reaches(here, node.name) and network.reaches(node.name, here)):
            self.world.after(20 * MS, self._refused, number, owner=self)
            return
        sock = node.listener.connect()
        reader = FrameReader()
        mine = End(self.host.name, self, lambda raw: self._receive(link, reader, raw), lambda: self._lost(link))
        theirs = End(node.name, node, sock.receive, sock.closed)
        link = Link(self.host.network, mine, theirs)
        sock.link, sock.end = link, theirs
        self._link, self._end, self._greeted = link, mine, False
        link.send(mine, frame(encode(m.RequestEnvelope(HELLO_CALL, self.core.hello()))))
        patience_ns = CLIENT_GREETING_MS * MS if self.core.impatient else GREETING_TIMEOUT_S * SECOND  # as in the worker
        self.world.after(patience_ns, self._greeting_late, link, owner=self)

    def _refused(self, number: int) -> None:
        if self._link is None and number == self._tries:
            self.core.on_disconnected()
            self._connect()

    def _greeting_late(self, link: Link) -> None:
        if link is self._link and not self._greeted:
            self._lost(link)

    def _lost(self, link: Link) -> None:
        if link is self._link:
            self._hang_up()
            self.core.on_disconnected()
            self._connect()

    def _hang_up(self) -> None:
        if self._link is not None and self._end is not None:
            self._link.close(self._end)
            self._link = self._end = None

    def _write(self, call: int, body: m.Body) -> None:
        if self._link is not None and self._end is not None:
            self._link.send(self._end, frame(encode(m.RequestEnvelope(call, body))))

    def _receive(self, link: Link, reader: FrameReader, raw: bytes) -> None:
        if self.world.now_ns < self.paused_until_ns:  # what arrives at a stopped worker is read when it goes on
            self.world.at(self.paused_until_ns, self._receive, link, reader, raw, owner=self)
            return
        for one in reader.feed(raw):
            if link is self._link:
                self._take(decode_answer(one))

    def _take(self, answer: m.Answer) -> None:
        if not self._greeted:
            self._greeted = True
            if self.core.on_greeting(answer.reply):
                self.lease.doubt()
                self.sharing.client.greeted(answer.reply.term)
        else:
            ended = self.core.take(answer)
            if ended is not None:
                if ended.error is not None and ClientCore.is_doubtful(ended):
                    self.lease.doubt()
                ended.request.resume(ended.reply, ended.error)
        if self.up:
            self._after()

    def _after(self) -> None:
        if not self.core.connected and self._greeted:
            self._hang_up()
            self._connect()
        self._arm()

    # --- time ------------------------------------------------------------------------------------------------------------------
    def _arm(self) -> None:
        due = [when for when in (self.core.due_ns(), self.lease.due_ns()) if when is not None]
        if due:
            when = max(self.host.clock.true_ns(min(due)), self.world.now_ns + 1, self.paused_until_ns)
            if self._tick_at < 0 or when < self._tick_at or self._tick_at <= self.world.now_ns:
                self._tick_at = when
                self.world.at(when, self._tick, when, owner=self)

    def _tick(self, when: int) -> None:
        if when != self._tick_at:
            return
        self._tick_at = -1
        if self.world.now_ns < self.paused_until_ns:
            self._arm()
            return
        for ended in self.core.tick():
            ended.request.resume(ended.reply, ended.error)
        while (due := self.lease.poll(self.host.clock.boot_ns())) is not None:
            if due == "renew":
                self._renew()
            else:
                self.world.count("sessions fenced themselves")
        self._after()

    def pause(self, for_ns: int) -> None:
        self.paused_until_ns = self.world.now_ns + for_ns
        self.world.say(f"{self.host.name} is stopped for {for_ns / SECOND:.3f} s")

    # --- the session -------------------------------------------------------------------------------------------------------------
    def submit(self, body: m.Body, resume: Resume) -> None:
        life = self.life

        def guarded(reply: Any, error: BaseException | None) -> None:
            if life == self.life:
                resume(reply, error)

        ended = self.core.submit(Outstanding(body, guarded))
        if ended is not None:
            guarded(ended.reply, ended.error)
        self._arm()

    def _renew(self) -> None:
        sent_ns, session = self.host.clock.boot_ns(), self.session

        def answered(reply: Any, error: BaseException | None) -> None:
            event = self.lease.take_answer(sent_ns, error, session == self.session, self.host.clock.boot_ns())
            if event == "lost":
                self._session_lost()

        self.submit(m.Renew(session, self.epoch, SEEN_ALL), answered)

    def _session_lost(self) -> None:
        self.world.count("sessions lost")
        self.world.say(f"{self.host.name}: session {self.session} has ended")
        self.host.checks.session_lost(self, self.session)
        self.session = self.epoch = 0
        self.lease.end()
        self.sharing.lost()
        self._open_session()

    def _open_session(self) -> None:
        if self._opening:
            return
        self._opening = True
        host = self.host
        sent_ns = host.clock.boot_ns()
        unique = BACKGROUND_BIT | _SESSION_BIT | self.dice.getrandbits(56)
        kind = c.OpenShared if host.uncached else c.OpenSession
        command = kind(self.number, host.volume, host.name, f"boot{host.boots}", self.workers, shared=host.shared)

        def opened(reply: Any, error: BaseException | None) -> None:
            self._opening = False
            self.core.ack_inherited(unique)
            if error is not None:
                host.checks.session_refused(self, error)
                self.world.after(SECOND, self._open_session, owner=self)
                return
            self.session, self.epoch = reply.session, reply.epoch
            self.lease.begin(sent_ns)
            host.checks.session_opened(self, reply)
            if host.shared and not host.uncached:
                self.sharing.begin(reply.session, reply.epoch)
            waiting, self._waiting = self._waiting, []
            for number in waiting:
                self._ask(number)
            self._arm()

        self.submit(m.Propose(unique, 0, 0, self.core.take_acks(), command), opened)

    # --- requests of the workload --------------------------------------------------------------------------------------------------
    def propose(self, command: c.Command, resume: Resume, *, wait: bool = False, final: bool = False) -> int:
        """Under an id of the mount; sent again by successors and new sessions until it has an outcome (`final`: ESTALE is one)."""
        self.unique += 1
        unique = self.unique
        kind = m.WaitLock if wait else m.Propose
        acks = self.core.copy_acks if wait else self.core.take_acks

        def body() -> m.Body:
            return kind(self.core.register(unique), self.session, self.epoch, acks(), command)

        self.executing[unique] = (body, resume)
        if final:
            self._final.add(unique)
        self.host.checks.invoked(self.number, unique, command)
        self._ask(unique)
        return unique

    def _ask(self, unique: int) -> None:
        if not self.up or not self.session:
            self._waiting.append(unique)
            return
        body, resume = self.executing[unique]

        def ended(reply: Any, error: BaseException | None) -> None:
            if isinstance(error, FsError) and error.errno == errno.ESTALE:
                if unique not in self._final:
                    self._stale(unique)
                    return
                self._refused_for_good(unique, reply, error, resume)
                return
            del self.executing[unique]
            outcome = reply if error is None else error
            self.host.checks.acknowledged(self.number, unique, outcome)
            self._unacknowledged.add(unique)
            if self.dice.random() < 0.9:  # the kernel took it
                self._acknowledge(unique)
            else:
                self.world.after(self.dice.randrange(5 * SECOND), self._acknowledge, unique, owner=self)
            self.last_answered = unique
            resume(reply, error)

        self.submit(body(), ended)

    def _refused_for_good(self, unique: int, reply: Any, error: BaseException, resume: Resume) -> None:
        """A refusal that is the end of it; no result is kept."""
        del self.executing[unique]
        self._acknowledge(unique)
        resume(reply, error)

    def _acknowledge(self, unique: int) -> None:
        self._unacknowledged.discard(unique)
        self.core.ack(unique)

    def _stale(self, unique: int) -> None:
        """The session has ended, and the renewal has not said so yet; under the next one."""
        if self.session:
            self.world.after(50 * MS, self._ask, unique, owner=self)
        else:
            self._waiting.append(unique)

    def query(self, body: m.Body, resume: Resume) -> None:
        """A read; a successor asks again."""
        self._queries += 1
        self.reading[self._queries] = (body, resume)
        self._read(self._queries)

    def _read(self, number: int) -> None:
        body, resume = self.reading[number]

        def ended(reply: Any, error: BaseException | None) -> None:
            del self.reading[number]
            resume(reply, error)

        if self.up:
            self.submit(body, ended)

    def cancel(self, unique: int) -> None:
        self.core.cancel(unique)
