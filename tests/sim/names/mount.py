"""A mount that shares its volume and decides names under its leases: the worker's own code from the operation down to the wire.

Production: SharedNames, the shipper with its thread, the op log in memory that outlives the worker, MountLeases and the thread of recalls,
the start of a worker (NamesStart), and the change of sessions (SessionChange, SessionOpening).  Simulated: the wire, the clock, the kernel
(requests that a successor repeats under their ids), and the parts of a worker that have nothing to do with names.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.limits import OP_LOG_BYTES, OP_RECORDS_SHARED_MAX
from awsomefsd.base.power_cut import Why
from awsomefsd.base.types import BACKGROUND_BIT
from awsomefsd.base.wait import Signal, Task
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.io.file.op_log import OpLog, OpRecord
from awsomefsd.io.file.shipper import record_of
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.lease_cache import MountLeases
from awsomefsd.meta.client.recalls import RecallQueue, RecallThread
from awsomefsd.meta.machine.record_checks import inodes_of
from awsomefsd.vfs.session.mount_session import SessionLease
from awsomefsd.vfs.state.shared_names import SharedNames
from awsomefsd.worker.delegation import NamesStart
from awsomefsd.worker.service_calls import ServiceCalls
from awsomefsd.worker.session_change import SessionChange
from awsomefsd.worker.session_opening import SessionOpening
from tests.sim.machines import threads
from tests.sim.machines.threads import Killed, Strand
from tests.sim.mounts.mount import _SESSION_BIT, Host, Mount
from tests.sim.world import MS

DIRTY_BYTES = 1 << 20  # no data is dirty here
DIRTY_RECALL_BYTES = 1 << 18
RESTART_NS = 100 * MS
BUSY_PAUSE_S = 0.5
KERNEL_NS = 20 * MS  # at most, to forget what it was told
Resume = Callable[[Any, "BaseException | None"], None]


class _Ask:
    """A request as a Wait.  Implements base.wait.Wait."""

    def __init__(self, mount: NamesMount, body: Callable[[], Any]) -> None:
        self._mount, self._body = mount, body

    def start(self, resume: Resume) -> None:
        self._mount.submit(self._body(), resume)


class Client:
    """What production code uses of the worker's client.  Implements Metadata, SessionClient and LeaseChannel."""

    def __init__(self, mount: NamesMount) -> None:
        self._mount = mount

    @property
    def session(self) -> int:
        return self._mount.session

    def session_token(self) -> tuple[int, int]:
        return self._mount.session, self._mount.epoch

    def lease_left_ns(self) -> int:
        return self._mount.lease.left_ns(self._mount.host.clock.boot_ns())

    def doubt_session(self) -> None:
        self._mount.lease.doubt()

    def submit(self, body: Any, resume: Resume) -> None:
        self._mount.submit(body, resume)

    def ask(self, body: Any) -> _Ask:
        return _Ask(self._mount, lambda: body)

    def propose(self, command: Any, unique: int, token: tuple[int, int] | None = None) -> _Ask:
        core = self._mount.core

        def body() -> m.Propose:
            return m.Propose(core.register(unique), *(token or self.session_token()), core.take_acks(), command)

        return _Ask(self._mount, body)

    def ack(self, unique: int) -> None:
        if self._mount.core.is_registered(unique):
            self._mount.core.ack(unique)

    def ack_inherited(self, unique: int) -> None:
        self._mount.core.ack_inherited(unique)

    def cancel(self, unique: int) -> None:
        self._mount.core.cancel(unique)

    def start_session(self, command: c.OpenSession) -> m.SessionOpened:
        opened: m.SessionOpened = threads.block_on(_Opening(self._mount, command))
        return opened


class _Opening:
    """A Wait for a session, which is the client's from the moment of the answer on."""

    def __init__(self, mount: NamesMount, command: c.OpenSession) -> None:
        self._mount, self._command = mount, command

    def start(self, resume: Resume) -> None:
        mount = self._mount
        sent_ns, unique = mount.host.clock.boot_ns(), BACKGROUND_BIT | _SESSION_BIT | mount.dice.getrandbits(56)

        def opened(reply: Any, error: BaseException | None) -> None:
            mount.core.ack_inherited(unique)
            if error is not None:
                mount.host.checks.session_refused(mount, error)
            else:
                mount.session, mount.epoch = reply.session, reply.epoch
                mount.lease.begin(sent_ns)
                mount.host.checks.session_opened(mount, reply)
            resume(reply, error)

        mount.submit(m.Propose(unique, 0, 0, mount.core.take_acks(), self._command), opened)


class Control:
    """The control area.  What outlives a worker."""

    def __init__(self, mount: int, log_id: int) -> None:
        self.state = SimpleNamespace(session=0, epoch=0, opening=False, mount=mount, dirty_log=log_id)
        self._background = 0
        self._counters: dict[str, Any] = {}

    def update(self, **fields: Any) -> None:
        vars(self.state).update(fields)

    def next_background_unique(self) -> int:
        self._background += 1
        return self._background | BACKGROUND_BIT

    def counter(self, name: str) -> Any:
        if name not in self._counters:
            found = self._counters[name] = SimpleNamespace(value=0)
            found.set = partial(setattr, found, "value")
        return self._counters[name]


class _Formats:
    """The keeper allows every format."""

    def __init__(self, log: OpLog) -> None:
        self._log = log

    def begin(self) -> Why:
        return Why.DECIDES if self._log.begin() else Why.DIRTY

    def end(self) -> None:
        self._log.end()

    def doubted(self) -> None:
        self._log.doubted()

    def trusted(self) -> None:
        self._log.trusted()


class JudgedNames(SharedNames):
    """The production class, observed where a record is stored and not told of yet."""

    mount: NamesMount

    def _note_made(self, record: c.DecidedRecord, reply: Any) -> None:
        self.mount.host.judge.decided(self.mount, self._newest, record)
        self.mount.recorded()
        super()._note_made(record, reply)

    def let_go(self, ino: int, mode: int, done: Callable[[], None]) -> None:
        super().let_go(ino, mode, done)
        if not self.is_told(ino):
            self.mount.recalled()

    def _fetch(self, names: Any, missing: Any, resume: Resume) -> None:
        super()._fetch(names, missing, resume)
        self.mount.asked_for_rows()


class _Sharing:
    """What Mount asks of its leases."""

    def __init__(self, mount: NamesMount) -> None:
        self._mount = mount

    @property
    def client(self) -> MountLeases:
        return self._mount.leases

    def start_worker(self) -> None:
        self._mount.build()

    def died(self) -> None:
        """Memory goes with its machine."""


class _NoFiles:
    def every(self) -> list[Any]:
        return []

    def dirty_states(self) -> list[Any]:
        return []


class NamesMount(Mount):
    host: NamesHost

    def __init__(self, host: NamesHost, number: int) -> None:
        self.strands: list[Strand] = []
        super().__init__(host, number)
        log_id = self.dice.getrandbits(60) | 1
        self.control = Control(number, log_id)
        self._dirty_mem, self._ops_mem = bytearray(DIRTY_BYTES), bytearray(OP_LOG_BYTES)
        self._fresh = True
        self.requests: dict[int, tuple[Any, Resume, int]] = {}  # of the kernel, not answered: command, who waits, since when
        self.questions: dict[int, tuple[Any, Resume, int]] = {}
        self._asked = 0
        self.syncs: dict[int, tuple[int, Resume, Any]] = {}  # inode, who waits, what the log did not have
        self._unsaid: set[int] = set()  # answered, and the op log does not know yet that the kernel took it
        self.at_record: Callable[[], None] = lambda: None  # what happens behind the next record that it stores
        self.at_recall: Callable[[], None] = lambda: None  # what happens when a recall waits for records next
        self.at_question: Callable[[], None] = lambda: None  # what happens when rows are on their way next
        self.fresh_life()

    def fresh_life(self) -> None:
        self.serving = self._begun = False
        self.names_lost: set[int] = set()
        self._replacing = False
        self._lost_session = 0
        self.ended_early = Signal()

    # --- the worker's life -------------------------------------------------------------------------------------------------
    @contextmanager
    def runs(self) -> Iterator[None]:
        """A scope for code of the worker, which may be killed in it."""
        with threads.worker(self), suppress(Killed):
            yield

    def start_worker(self) -> None:
        self.fresh_life()
        self.sharing = _Sharing(self)  # type: ignore[assignment]
        self.strands.clear()
        with threads.worker(self):
            super().start_worker()

    def build(self) -> None:
        """As Worker.__init__, once there is a client core."""
        host, client = self.host, Client(self)
        self.metadata = client
        dirty = DirtyLog(self._dirty_mem, self.control.state.dirty_log, self._fresh, recall_bytes=DIRTY_RECALL_BYTES, with_ops=True)
        self.log = OpLog(self._ops_mem, dirty, self._fresh, records_max=OP_RECORDS_SHARED_MAX)
        self._fresh = False
        self.served = SessionLease(client.lease_left_ns)
        names = self.names = JudgedNames(host.volume, client, self.log, dirty.log_id, self.served, self.control)  # type: ignore[arg-type]
        names.mount = self
        queue = RecallQueue()
        leases = self.leases = names.leases = MountLeases(client, host.volume, queue)  # type: ignore[arg-type]
        RecallThread(queue, [names.let_go, self._kernel_forgets], lambda ino: None)
        formats = _Formats(self.log)
        self.opening = SessionOpening(client, self.control, formats)  # type: ignore[arg-type]
        kernel = SimpleNamespace(inherit=lambda inos: True)
        parts = SimpleNamespace(caches=SimpleNamespace(leases=leases, kernel=kernel), buffered=SimpleNamespace(files=_NoFiles()))
        writer, proof = SimpleNamespace(abandon=lambda: None), SimpleNamespace(begin=lambda lost: None)
        calls = ServiceCalls(client, self.control)  # type: ignore[arg-type]
        self.change = SessionChange(self.opening, parts, self.control, writer, proof, None, calls, names)  # type: ignore[arg-type]
        memory = SimpleNamespace(ops=self.log, dirty=dirty, control=self.control, unanswered=lambda: [*self.requests])
        config = SimpleNamespace(shared=True, volume=host.volume, options=())
        events = SimpleNamespace(ended_early=self.ended_early)
        aside = SimpleNamespace(save=self._save, inherited=[])
        self.names_start = NamesStart(names, aside, memory, formats, config, events)  # type: ignore[arg-type]

    def _save(self, records: list[OpRecord], why: str) -> None:
        self.world.count("records put aside", len(records))
        for record in records:
            self.names_lost.update(inodes_of(record_of(record)))
        self.world.say(f"{self.host.name}: {len(records)} records are put aside: {why}")

    def _kernel_forgets(self, _ino: int, _mode: int, done: Callable[[], None]) -> None:
        self.world.after(self.dice.random() * KERNEL_NS, self.enter, done, owner=self)

    def enter(self, call: Callable[[], None]) -> None:
        if self.world.now_ns < self.paused_until_ns:
            self.world.at(self.paused_until_ns, self.enter, call, owner=self)
            return
        with self.runs():
            call()

    def _open_session(self) -> None:
        """Called where a worker begins."""
        Strand(self._start, "start").start()

    def _start(self) -> None:
        opened = self._opened([*self.requests])
        ended = self.control.state.session not in (0, opened.session)
        self.names_start.ship_inherited(opened, [], changed_by_others=ended)  # as WorkerTakeover.run: leases ended with the session
        self.change.begin(opened)
        self._known()
        threads.block_on(_Repeating(self))
        self.names_start.begin(opened)
        self.serving = True
        for number in sorted(self.questions):
            self.world.after(0, self.enter, partial(self._ask_again, number), owner=self)
        for number in sorted(self.syncs):
            self.world.after(0, self.enter, partial(self._sync, number), owner=self)
        for unique in sorted(self.requests):  # that came meanwhile
            self.world.after(0, self.enter, partial(self._execute, unique), owner=self)

    def _opened(self, unanswered: list[int] | None = None) -> Any:
        host = self.host
        while True:
            command = c.OpenShared(
                self.number, host.volume, host.name, f"boot{host.boots}", self.workers, shared=True, unanswered=unanswered, caches=True
            )
            with suppress(FsError):
                return self.opening.start_session(command)
            threads.sleep(BUSY_PAUSE_S)

    def _stop(self, how: str) -> None:
        super()._stop(how)
        self.serving = False
        self.end_strands()

    def end_strands(self) -> None:
        strands, self.strands = self.strands, []
        for strand in strands:
            strand.kill()

    def strand_failed(self, error: BaseException) -> None:
        if isinstance(error, Unavailable) and self.up:
            self.world.count("workers that began again")
            self.kill_worker(RESTART_NS)
            return
        raise error

    def recorded(self) -> None:
        """A record is stored, and nobody was told."""
        at_record, self.at_record = self.at_record, lambda: None
        at_record()

    def recalled(self) -> None:
        """A recall waits for records."""
        at_recall, self.at_recall = self.at_recall, lambda: None
        at_recall()

    def asked_for_rows(self) -> None:
        at_question, self.at_question = self.at_question, lambda: None
        at_question()

    def be_killed(self) -> None:
        self.world.count("workers killed behind a record")
        self.kill_worker(int(self.dice.choice([50, 300, 2_000]) * MS))
        raise Killed

    # --- the session -------------------------------------------------------------------------------------------------------
    def _known(self) -> None:
        self._begun = True
        if self._lost_session:
            self._replace_session()

    def _session_lost(self) -> None:
        """As MountEvents.lost and SessionKeeper.lost."""
        self.world.count("sessions lost")
        self.world.say(f"{self.host.name}: session {self.session} has ended")
        self.host.checks.session_lost(self, self.session)
        self._lost_session = self.session
        if self._begun:
            self._replace_session()
        else:
            self.ended_early.fire()

    def _replace_session(self) -> None:
        self.leases.lost()
        if not self._replacing:
            self._replacing = True
            self.served.hold()
            Strand(self._replace, "new-session").start()

    def _replace(self) -> None:
        while self._lost_session == self.session:
            self.served.hold()
            opened = self._opened()
            threads.sleep(self.dice.random() * self.dice.choice([0.001, 0.2]))
            self.change.replaced(opened)
            self.served.release()
        self._replacing = False

    # --- what comes in -----------------------------------------------------------------------------------------------------
    def _receive(self, link: Any, reader: Any, raw: bytes) -> None:
        with self.runs():
            super()._receive(link, reader, raw)

    def _tick(self, when: int) -> None:
        with self.runs():
            super()._tick(when)

    def _renew(self) -> None:
        """As the client: who waits for the session hears of each renewal."""
        sent_ns, session = self.host.clock.boot_ns(), self.session

        def answered(_reply: Any, error: BaseException | None) -> None:
            event = self.lease.take_answer(sent_ns, error, session == self.session, self.host.clock.boot_ns())
            if event == "lost":
                self._session_lost()
            elif event == "renewed":
                self.served.announce()

        self.submit(m.Renew(session, self.epoch, (1 << 62) - 1), answered)

    # --- requests of programs ----------------------------------------------------------------------------------------------
    def request(self, command: Any, resume: Resume) -> None:
        """A change of names; answered by this worker or a successor."""
        self.unique += 1
        self.requests[self.unique] = (command, resume, self.world.now_ns)
        if self.serving:
            self.enter(partial(self._execute, self.unique))

    def _execute(self, unique: int, told: Callable[[], None] = lambda: None, *, again: bool = False) -> None:
        if unique not in self.requests:
            return
        command, resume, since_ns = self.requests[unique]
        life = self.life

        def finish(reply: Any, error: BaseException | None) -> None:
            if self.life != life:
                return
            if error is not None and not isinstance(error, FsError):
                raise error
            del self.requests[unique]
            self.host.judge.answered(self, unique, command, since_ns, reply, error, again)
            self._unsaid.add(unique)
            late = self.dice.random() < 0.1
            self.world.after(self.dice.random() * 3_000 * MS if late else 0, self.enter, partial(self._said, unique), owner=self)
            told()
            self.world.after(0, resume, reply, error)

        Task(self._steps(lambda: self.names.propose(command, unique)), finish).start()

    def _said(self, unique: int) -> None:
        if unique in self._unsaid:
            self._unsaid.discard(unique)
            self.names.ack(unique)

    def question(self, body: Any, resume: Resume) -> None:
        self._asked += 1
        self.questions[self._asked] = (body, resume, self.world.now_ns)
        if self.serving:
            self.enter(partial(self._ask_again, self._asked))

    def _ask_again(self, number: int) -> None:
        if number not in self.questions:
            return
        body, resume, since_ns = self.questions[number]
        life = self.life

        def finish(reply: Any, error: BaseException | None) -> None:
            if self.life != life:
                return
            if error is not None and not isinstance(error, FsError):
                raise error
            del self.questions[number]
            self.host.judge.asked(self, body, since_ns, reply, error)
            self.world.after(0, resume, reply, error)

        Task(self._steps(lambda: self.names.ask(body)), finish).start()

    def _steps(self, start: Callable[[], Any]) -> Any:
        """As Vfs and MountState: nothing begins behind the fence; what is refused as of an ended session is asked under the next one."""
        yield from self._served()
        while True:
            token = self.metadata.session_token()
            try:
                return (yield start())
            except FsError as err:
                if err.errno != errno.ESTALE:
                    raise
            renewed = self.served.renewed()
            if self.served.left_ns() > 0 and self.metadata.session_token() != token:
                renewed = Signal()
                renewed.fire()
            yield renewed

    def _served(self) -> Any:
        while (renewed := self.served.renewed()) and self.served.left_ns() <= 0:
            yield renewed

    def give_back(self, dice: Any, resume: Resume) -> None:
        """As IdleLeases: a write lease that is not needed becomes a read lease."""
        if self.serving:
            held = sorted(self.leases.writes())
            if held:
                self.enter(partial(self.leases.lower, [dice.choice(held)], self.names.is_clean))
        self.world.after(MS, resume, None, None)

    # --- fsync -------------------------------------------------------------------------------------------------------------
    def sync(self, ino: int, resume: Resume) -> None:
        """fsync of a file or directory; asked again by a successor."""
        self._asked += 1
        self.syncs[self._asked] = (ino, resume, self.host.judge.syncing(self))
        if self.serving:
            self.enter(partial(self._sync, self._asked))

    def _sync(self, number: int) -> None:
        """As MountState.await_names."""
        if number not in self.syncs:
            return
        ino, resume, wanted = self.syncs[number]
        life, begun = self.life, []

        def steps() -> Any:
            yield from self._served()
            begun.extend(self.host.judge.syncing(self))
            signal = self.names.synced()
            if signal is not None:
                yield signal
            if ino in self.names_lost:
                self.names_lost.discard(ino)
                raise FsError(errno.EIO, "lost")

        def ended(_value: Any, error: BaseException | None) -> None:
            if self.life != life:
                return
            del self.syncs[number]
            self.host.judge.synced(self, ino, wanted, begun, error)
            self.world.after(0, resume, None, error)

        Task(steps(), ended).start()


class _Repeating:
    """A Wait for the requests that a predecessor had not answered."""

    def __init__(self, mount: NamesMount) -> None:
        self._mount = mount

    def start(self, resume: Resume) -> None:
        mount = self._mount
        left = set(mount.requests)
        mount._unsaid.clear()  # the kernel has these answers
        if not left:
            resume(None, None)

        def told(unique: int) -> None:
            left.discard(unique)
            if not left:
                resume(None, None)

        for unique in sorted(left):
            mount._execute(unique, partial(told, unique), again=True)


class NamesHost(Host):
    judge: Any
    place = 0

    def make_mount(self, number: int) -> Mount:
        return NamesMount(self, number)
