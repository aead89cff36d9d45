"""A writer to a pool whose servers fail, end, and come back at random: what is committed is on the mirrors that the log names.

Every report that the writer makes is one that the log takes: a refused one would be named again with each Commit, and nothing be committed.
"""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest

from awsomefsd.base.errors import Error
from awsomefsd.base.limits import MIB
from awsomefsd.base.types import Redundancy
from tests.rigs import segment_servers, served_pool
from tests.rigs.machine_driver import sound
from tests.rigs.patience import patient  # noqa: F401 - the fixture
from tests.rigs.segment_servers import ServedNode
from tests.rigs.served_pool import ServedPool
from tests.unit.io.pool.test_fanout import File

STEPS, HOSTS, BAYS = 60, 4, 120
LENGTHS = (1, 5_000, 70_000, 300_000, MIB, 5 * MIB)


class Node:
    """One server, which is well or not."""

    def __init__(self, served: ServedNode) -> None:
        self.served, self.away = served, False

    def fail(self, dice: Random) -> None:
        match dice.randrange(3):
            case 0:
                self.served.file.fail_writes = True
            case 1:
                self.served.file.fail_flushes = True
            case _:
                if not self.away:
                    self.away = True
                    self.served.server.stop()

    def mend(self) -> None:
        self.served.file.fail_writes = self.served.file.fail_flushes = False
        if self.away:
            self.away = False
            self.served.start()


def _step(pool: ServedPool, file: File, nodes: list[Node], dice: Random) -> str:
    """One thing that happens.  What the writer reports the machine takes (`ok` raises what it refuses)."""
    match dice.randrange(12):
        case 0 | 1:
            dice.choice(nodes).fail(dice)
            return "fail"
        case 2 | 3 | 4:
            dice.choice(nodes).mend()
            return "mend"
        case 5:
            pool.report(file.writer.seal_all())
            return "seal"
        case 6:
            pool.report(file.writer.rest().progress)
            return "rest"
        case 7:
            left = {dice.randrange(HOSTS) + 1}
            pool.report(file.writer.leave(left, left if dice.random() < 0.5 else ()).progress)
            return f"leave {left}"
        case 8 if dice.random() < 0.3:
            file.writer.abandon()
            pool.end_session()
            return "session"
    length = dice.choice(LENGTHS)
    try:
        file.write(length)
    except (OSError, Error) as err:
        if err.errno == errno.EINVAL:
            raise
        return f"no {length}: {err}"
    return f"write {length}"


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("quorum", [False, True])
def test_servers_that_fail_at_random_lose_nothing_that_was_committed(
    tmp_path: Path, seed: int, quorum: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (segment_servers, served_pool):
        monkeypatch.setattr(module, "BAYS", BAYS)  # nothing is freed: there is no upkeep
    dice, done = Random(seed), list[str]()
    pool = ServedPool(tmp_path, HOSTS, Redundancy(3, 2, quorum=quorum))
    try:
        nodes, file = [Node(served) for served in pool.cluster.nodes], File(pool, pool.writer())
        for _ in range(STEPS):
            done.append(_step(pool, file, nodes, dice))
            sound(pool.drive)
        for node in nodes:
            node.mend()
        file.check()
        pool.report(file.writer.seal_all())
        file.check()
    except BaseException as err:
        err.add_note("\n".join(done))
        raise
    finally:
        pool.close()
