"""Scrub: everything that is stored is read and verified, again and again, while it is in use.

Each node scrubs what is its own.  The rows, if it carries the metadata: a copy of the last commit is made page by page (never walked in
this process: LMDB has no checksums on its pages, and a flipped pointer may end a process) and another process, of lowest priority, runs
every check of fsck over it; so rows that are missing or changed are found too, and the metadata thread does nothing for it.  The files of
its journal.  The devices that are its home, and of shared ones those that it collects: both superblocks (one is repaired from the other),
and of each segment that holds something its footer and every live extent, header, data and identity.  A header or footer that is damaged
while the other one stands in is not written again in its place, which may be used by others at that moment: collection moves what lives in
the segment, and the finding is repaired when the segment is free or used again (decision 187).

A round begins `every_s` after the last one began, and is spread over half of that time; one that somebody orders goes as fast as it may.
No false alarms (segment_check.py).  Damage in files is recorded (damage.py) and shown until it is over.  The position is on disk, so a
daemon that starts again goes on.  The budget of the node (io_budget.py) leaves half of the time to others, whatever the rate.  Rejected:
reading whole segments without asking what lives, which cannot tell damage from a place that is being used again.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from awsomefsd.base import durable, program
from awsomefsd.base.errors import Corrupt, Error, FsError, Refused
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import MIB, SCRUB_BYTES_PER_S, SCRUB_FINDINGS_MAX, SCRUB_ROOM_BYTES
from awsomefsd.base.metrics import Sample
from awsomefsd.base.types import SEGMENT_FREE, DeviceInfo, SegmentBay, SegmentInBays, bays_of
from awsomefsd.io.device.device import BlockDevice, Device
from awsomefsd.io.device.identified import mend_identified, open_identified
from awsomefsd.io.device.superblock import copies_agree
from awsomefsd.io.file.damaged_reads import DamagedReads
from awsomefsd.io.transport.messages import Verified
from awsomefsd.meta.api.messages import GetDevices, GetSegments
from awsomefsd.meta.api.messages.scrub import GetLiveSegments
from awsomefsd.meta.client.paths import path_of
from awsomefsd.meta.log.verify import faults_of, journal_files
from awsomefsd.node.maintenance import damage
from awsomefsd.node.maintenance.bay_check import BayCheck
from awsomefsd.node.maintenance.io_budget import IoBudget
from awsomefsd.node.maintenance.segment_check import DATA, ScrubFinding, SegmentCheck

logger = logging.getLogger(__name__)

SAVE_S = 5.0
CHECK_S = 3_600.0  # a check of a copy that takes longer than this is given up
PAGE = 512
IDLE, ROWS, JOURNAL, DEVICES, SEGMENTS = "never", "rows", "journal", "devices", "segments"
DONE, STOPPED, FAILED = "done", "stopped", "failed"
_GOING = (ROWS, JOURNAL, DEVICES, SEGMENTS)
NS_PER_S = 10**9
NOT_A_COPY = "; it holds something else, and is left alone; see `awsomefsd fsck`"
FAILED_S = 3_600  # after a round that failed by itself
SPREAD = 2  # a round that is due by itself takes one part in so many of the time between two
SLOWEST_BYTES_PER_S = 4 * MIB  # of such a round


class ScrubProgress(Struct):
    """The progress that status shows and the file keeps.  `segment`: the next one to read."""

    state: str = IDLE
    bytes_per_s: int = SCRUB_BYTES_PER_S
    started_ns: int = 0
    ended_ns: int = 0
    segment: int = 0
    segments: int = 0
    extents: int = 0
    bytes: int = 0
    total_bytes: int = 0
    rechecked: int = 0  # seemed wrong, and had only changed meanwhile
    found: int = 0
    repaired: int = 0
    recorded: int = 0  # in files, and shown as such until it is over (damage.py)
    reason: str = ""
    findings: list[ScrubFinding] = []  # the first SCRUB_FINDINGS_MAX
    by_itself: bool = False  # nobody ordered this round
    open_before: int = 0  # what the last complete round found, and did neither repair nor record
    complete_ns: int = 0  # when the last complete round began, or this node first knew of scrub

    @property
    def open(self) -> int:
        """What is known to be wrong, neither repaired nor recorded as damage of a file; while a round runs, of the last one too."""
        now = self.found - self.repaired - self.recorded
        return max(now, self.open_before) if self.state in _GOING else now

    def behind_s(self, every_s: int, now_ns: int) -> int:
        """Returns for how long what was stored has not been verified as a whole, in seconds; 0 if that is no longer than it should be."""
        since_s = (now_ns - self.complete_ns) // NS_PER_S if self.complete_ns else 0
        return since_s if since_s > 2 * every_s else 0


class ScrubbedPool(Struct, frozen=True):
    """The pools as this node checks them.  `node`: whose devices are checked here; `propose` and `verify`: as in BayCheck.

    `interrupt` ends a verification that is waited for, and does not block.
    """

    node: str
    propose: Callable[[Any], Any]
    verify: Callable[[SegmentInBays, SegmentBay, int], Verified]
    interrupt: Callable[[], None]


class Upkeep(Struct, frozen=True):
    """What a round depends on.  `mine`: the devices of all that this node scrubs; `carries`: whether it has rows and a journal.

    `checks`: False on a client of the cluster, which may not ask what lies where.  `empty` has collection move what
    lives in these (segment, incarnation) as soon as it can; it returns at once, and may be asked again.

    `pool`: None where a build has none.
    """

    every_s: int
    budget: IoBudget
    mine: Callable[[list[DeviceInfo]], list[DeviceInfo]]
    carries: Callable[[], bool]
    checks: bool = True
    empty: Callable[[set[tuple[int, int]]], None] = lambda damaged: None
    pool: ScrubbedPool | None = None


class ScrubStopped(Exception):
    """The scrub is to end now."""


class Scrub:
    """The scrub of this node.  `call` asks the metadata service, `copy_store` makes a copy of the pages of this node's rows.

    Any thread may call `start`, `resume`, `mend`, `status`, `stop` and `samples`; the work is done on a thread of its own.
    """

    def __init__(
        self,
        state_dir: Path,
        cluster_uuid: str,
        call: Callable[[Any], Any],
        copy_store: Callable[[Path], None],
        upkeep: Upkeep,
        open_device: Callable[[str, str, str, int], Device] = open_identified,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._upkeep = upkeep
        self._journal = state_dir / "meta" / "journal"
        self._path = state_dir / "scrub.json"
        self._copies = state_dir / "scrub"
        self._store = state_dir / "meta" / "store" / "data.mdb"
        self._cluster_uuid = cluster_uuid
        self._call = call
        self._copy_store = copy_store
        self._open_device = open_device
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._counting = threading.Lock()  # guards the findings and their counts
        self._saving = threading.Lock()  # guards the file
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress = _load(self._path)
        self._damaged = DamagedReads(state_dir)
        self._saved = 0.0

    # --- what people ask --------------------------------------------------------------------------------------------------------
    def start(self, bytes_per_s: int = 0) -> ScrubProgress:
        """Starts a scrub from the beginning, in the place of one that runs by itself, and returns its progress.

        Raises Refused while one runs that somebody ordered, and on a client of the cluster.
        """
        if not self._upkeep.checks:
            raise Refused("this node is a client of the cluster and may not check what lies where; run it on a node of role node")
        if self._progress.by_itself:
            self.stop()
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise Refused("a scrub is running already; see `awsomefsd scrub status`, or stop it with `awsomefsd scrub stop`")
            self._start(bytes_per_s or SCRUB_BYTES_PER_S, by_itself=False)
        return self.status()

    def poll(self) -> None:
        """Starts a round if one is due.  Does not wait for it; raises OSError."""
        if not self._upkeep.checks:
            return
        with self._lock:
            p = self._progress
            if not p.complete_ns:
                p.complete_ns = p.started_ns or self._now_ns()
                self._save()
            running = self._thread is not None and self._thread.is_alive()
            last_ns = max(p.started_ns, p.complete_ns)
            pause_s = min(FAILED_S, self._upkeep.every_s) if p.state == FAILED else self._upkeep.every_s
            since_ns = max(p.ended_ns, last_ns) if p.state == FAILED else last_ns
            if not running and p.state not in _GOING and self._now_ns() - since_ns >= pause_s * NS_PER_S:
                logger.info("scrub begins a round by itself")
                self._start(SCRUB_BYTES_PER_S, by_itself=True)

    def due_ns(self) -> int:
        """Returns when the next round begins by itself, in ns since 1970; 0 while one runs, and where none does."""
        p = self._progress
        return 0 if p.state in _GOING or not self._upkeep.checks else max(p.started_ns, p.complete_ns) + self._upkeep.every_s * NS_PER_S

    def _start(self, bytes_per_s: int, *, by_itself: bool) -> None:
        old, now = self._progress, self._now_ns()
        state = ROWS if self._upkeep.carries() else DEVICES
        self._progress = ScrubProgress(
            state, bytes_per_s, now, by_itself=by_itself, open_before=old.open, complete_ns=old.complete_ns or now
        )
        self._begin()

    def resume(self) -> None:
        """Continues the scrub that the end of the daemon interrupted, if there is one."""
        with self._lock:
            if self._progress.state in _GOING and self._thread is None:
                self._begin()

    def _begin(self) -> None:
        self._stop.clear()
        self._save()
        self._thread = threading.Thread(target=self._main, name="scrub", daemon=True)
        self._thread.start()

    def status(self) -> ScrubProgress:
        """Returns a copy of the progress."""
        with self._counting:
            return replace(self._progress, findings=list(self._progress.findings))

    def stop(self) -> ScrubProgress:
        """Ends the scrub, waits for its thread, and returns the progress; `resume` does not continue it."""
        self.close()
        with self._lock:
            if self._progress.state in _GOING:
                self._progress.state, self._progress.ended_ns = STOPPED, self._now_ns()
                self._save()
        return self.status()

    def close(self) -> None:
        """Ends the thread and waits for it; the position is kept for `resume`."""
        self._stop.set()
        if self._upkeep.pool is not None:
            self._upkeep.pool.interrupt()
        thread = self._thread
        if thread is not None:
            thread.join()

    def samples(self) -> Iterable[Sample]:
        p = self._progress
        yield Sample("awsomefsd_scrub_running", "gauge", "Whether a scrub is running.", int(p.state in _GOING))
        yield Sample("awsomefsd_scrub_bytes", "gauge", "Bytes read by the current or last scrub.", p.bytes)
        yield Sample("awsomefsd_scrub_findings", "gauge", "What the current or last scrub found wrong.", p.found)
        yield Sample("awsomefsd_scrub_repaired", "gauge", "What it repaired from a second copy.", p.repaired)
        yield Sample(
            "awsomefsd_scrub_verified_seconds", "gauge", "When the last complete round began, since 1970.", p.complete_ns // NS_PER_S
        )
        yield Sample("awsomefsd_scrub_ended_seconds", "gauge", "When the last scrub ended, since 1970; 0: never.", p.ended_ns // 10**9)

    # --- the thread ----------------------------------------------------------------------------------------------------------------
    def _main(self) -> None:
        p = self._progress
        try:
            if p.state == ROWS:
                self._rows()
                self._goes_on(JOURNAL)
            if p.state == JOURNAL:
                self._journal_files()
                self._goes_on(DEVICES)
            opened = self._open_devices()
            try:
                self._goes_on(SEGMENTS)
                self._segments({number: device for number, (_, device) in opened.items()})
            finally:
                for _, device in opened.values():
                    device.close()
            p.state, p.ended_ns, p.complete_ns = DONE, self._now_ns(), p.started_ns
            logger.info("scrub ended", extra={"found": p.found, "repaired": p.repaired, "bytes": p.bytes})
        except ScrubStopped:
            return  # `stop` writes the state; after the end of the daemon `resume` continues
        except Exception as err:
            p.state, p.ended_ns, p.reason = FAILED, self._now_ns(), f"{type(err).__name__}: {err}"
            logger.exception("scrub failed")
        finally:
            with suppress(OSError):
                self._save()

    def _goes_on(self, state: str) -> None:
        self._progress.state = state
        self._save()
        self._check_stop()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise ScrubStopped

    def _save(self) -> None:
        hit("scrub.save.before")
        with self._saving:
            durable.write_json(self._path, msgspec.to_builtins(self._progress))
        hit("scrub.save.after")
        self._saved = time.monotonic()

    def mend_due(self) -> bool:
        """Returns whether a header or footer is damaged and not yet repaired.  Does not block."""
        return any(one.segment and not one.repaired for one in self._progress.findings)

    def mend(self) -> None:
        """Has the segments emptied of which a header or footer is damaged, and counts those as repaired that are.

        Any thread; blocks for the service and raises its Error, or OSError.
        """
        damaged = {(one.segment, one.incarnation) for one in self.status().findings if one.segment and not one.repaired}
        if emptied := {one for one in damaged if self._emptied(*one)}:
            with self._counting:
                p = self._progress
                for at, one in enumerate(p.findings):
                    if not one.repaired and (one.segment, one.incarnation) in emptied:
                        p.findings[at] = replace(one, repaired=True)
                        p.repaired += 1
                        logger.info("scrub: what a segment with damage held was moved elsewhere", extra={"where": one.where})
            self._save()
        if damaged > emptied:
            self._upkeep.empty(damaged - emptied)

    def _emptied(self, segment: int, incarnation: int) -> bool:
        try:
            (now,) = self._call(GetSegments([segment])).segments
        except FsError as err:
            if err.errno == errno.ENOENT:
                return True  # its device was removed
            raise
        return bool(now.incarnation != incarnation or now.state == SEGMENT_FREE)

    def _found(self, finding: ScrubFinding) -> None:
        """Counts, keeps and logs a finding; the event names the file."""
        p = self._progress
        recorded = finding.kind == DATA and damage.record(self._damaged, finding)
        with self._counting:
            p.found += 1
            p.repaired += finding.repaired
            p.recorded += recorded
            if len(p.findings) < SCRUB_FINDINGS_MAX:
                p.findings.append(finding)
        named = {name: getattr(finding, name) for name in ("kind", "where", "volume", "path", "offset", "repaired")}
        logger.error("scrub found: %s", finding.what, extra=named)
        self._save()

    # --- rows -----------------------------------------------------------------------------------------------------------------------
    def _check_room(self) -> None:
        """Raises Refused if a copy of the rows could leave the journal without room: all voters would stop at about the same time."""
        size = self._store.stat().st_size if self._store.exists() else 0
        free = shutil.disk_usage(self._copies).free
        if free < size + SCRUB_ROOM_BYTES:
            raise Refused(
                f"a copy of the rows takes {size} bytes in {self._copies}, where {free} are free, and the journal needs "
                f"{SCRUB_ROOM_BYTES} of them; make room there"
            )

    def _rows(self) -> None:
        self._copies.mkdir(mode=0o700, exist_ok=True)
        self._check_room()
        copy = self._copies / "data.mdb"
        try:
            hit("scrub.copy.before")
            self._copy_store(copy)
            hit("scrub.copy.after")
            for fault in self._check_copy():
                volume, path = self._named(fault["where"])
                self._found(ScrubFinding(fault["kind"], fault["where"], fault["what"], volume, path))
        finally:
            for left in self._copies.iterdir():
                left.unlink()

    def _check_copy(self) -> list[dict[str, str]]:
        process = subprocess.Popen(
            program.command("check-copy", str(self._copies)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=program.environment()
        )
        answer: list[bytes] = []
        reader = threading.Thread(target=lambda: answer.append(process.stdout.read() if process.stdout else b""), daemon=True)
        reader.start()
        deadline = time.monotonic() + CHECK_S
        try:
            while reader.is_alive():
                reader.join(0.1)
                self._check_stop()
                if time.monotonic() > deadline:
                    return [_structure("checking it did not end")]
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        try:
            faults: list[dict[str, str]] = json.loads(answer[0])["faults"]
            return faults
        except (ValueError, KeyError, IndexError):
            return [_structure(f"the process that read it ended with {code}")]

    def _named(self, where: str) -> tuple[str, str]:
        """Returns (volume, path) of a place that fsck's words name."""
        words = where.split()
        if len(words) < 4 or (words[0], words[2]) != ("volume", "inode"):
            return "", ""
        return words[1], path_of(self._call, int(words[1]), int(words[3]))

    # --- the journal -----------------------------------------------------------------------------------------------------------------
    def _journal_files(self) -> None:
        files, began = journal_files(self._journal), time.monotonic()
        for path, count, why in faults_of(files):
            again = next(faults_of(files[files.index(path) :]), None) if why else None
            if again is not None and again[0] == path and again[2]:
                self._found(ScrubFinding("journal", f"journal file {path.name}", why))
            self._pace(count, began)
            began = time.monotonic()

    # --- devices --------------------------------------------------------------------------------------------------------------------
    def _open_devices(self) -> dict[int, tuple[DeviceInfo, Device]]:
        opened: dict[int, tuple[DeviceInfo, Device]] = {}
        mine = self._upkeep.mine(self._call(GetDevices()).devices)
        if self._progress.by_itself:
            used = sum((info.segments - info.segments_free) * info.segment_bytes for info in mine)
            spread = SPREAD * used // self._upkeep.every_s
            self._progress.bytes_per_s = min(max(spread, SLOWEST_BYTES_PER_S), SCRUB_BYTES_PER_S)
        for info in mine:
            try:
                if not info.path:
                    raise Error("not found on this node")
                device = self._open_device(info.path, self._cluster_uuid, info.uuid, info.era)
                opened[info.device] = (info, device)
                if not copies_agree(device):
                    repaired = mend_identified(device, self._cluster_uuid, info.uuid, info.bytes, info.era)
                    what = f"one of two superblocks was damaged{'' if repaired else NOT_A_COPY}"
                    self._found(ScrubFinding("superblock", f"device {info.path}", what, repaired=repaired))
            except (Error, OSError) as err:
                self._found(ScrubFinding("device", f"device {info.path or info.uuid}", str(err)))
        return opened

    # --- segments -------------------------------------------------------------------------------------------------------------------
    def _segments(self, devices: Mapping[int, BlockDevice]) -> None:
        p = self._progress
        check = SegmentCheck(self._call, self._found, self._pace, p)
        check_bays = self._bay_check()
        while True:
            page = self._call(GetLiveSegments(p.segment, PAGE))
            p.total_bytes = p.bytes + sum(info.live_bytes for info in page.segments)
            for info in page.segments:
                device = devices.get(info.device)
                if bays_of(info):
                    check_bays(info)
                elif device is not None:
                    check.run(device, info)
                p.segment, p.segments = info.segment + 1, p.segments + 1
                if time.monotonic() - self._saved > SAVE_S:
                    self._save()
            if not page.after:
                return
            p.segment = max(p.segment, page.after)

    def _bay_check(self) -> Callable[[SegmentInBays], None]:
        """Returns what checks the mirrors of a segment in bays that are on devices which this node serves."""
        pool = self._upkeep.pool
        if pool is None:
            return lambda _info: None
        own = {one.device for one in self._call(GetDevices()).devices if one.pool and one.server == pool.node}
        check = BayCheck(pool.node, self._call, pool.propose, pool.verify, self._found, self._pace, self._progress)
        return lambda info: check.run(info, own)

    def _pace(self, count: int, began: float) -> None:
        """Waits so that neither the rate nor the budget of the node is passed."""
        self._progress.bytes += count
        rest_s = self._upkeep.budget.spend(count, began)
        wait = max(rest_s, began + count / self._progress.bytes_per_s - time.monotonic())
        if self._stop.wait(wait):
            raise ScrubStopped


def _structure(why: str) -> dict[str, str]:
    return {
        "kind": "store-structure",
        "where": "state store",
        "what": f"its pages are damaged ({why}); stop the daemon and run `awsomefsd fsck`",
    }


def _load(path: Path) -> ScrubProgress:
    try:
        return msgspec.convert(durable.read_json(path, {}), ScrubProgress)
    except (Corrupt, msgspec.ValidationError) as err:
        logger.warning("the position of the last scrub cannot be read; the scrub begins from the start", extra={"reason": str(err)})
        return ScrubProgress()
