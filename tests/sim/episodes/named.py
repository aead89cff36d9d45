"""All episodes by name; here are those of memberships, transfers and sessions, in directed.py those of elections and promises.

What an episode tries is counted when it came about, not when it began.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from msgspec import structs

from awsomefsd.base.errors import Error
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.raft.types import Role
from tests.sim.episodes.directed import Directed, Episode, Until, raft_of
from tests.sim.judges.renewal_checks import LEADERS_CHANGED
from tests.sim.world import MS, SECOND

TRANSFERS_GIVEN_UP = "transfers given up while mounts shared"
ENDED_BY_HAND = "sessions ended by an administrator"
FAULTS_IN_JOINT = "faults inside a joint change"
LOST_IN_JOINT = "journals lost inside a joint change"
LOST_MAJORITIES = "majorities lost"
ENDED_BEHIND_TAKEOVER = "sessions that ended behind a takeover"
# Rare ones are wanted of the seeds that play nothing else, common ones of all seeds.
JUDGED_NS = 20 * SECOND  # longer than renewal_checks.py waits before it judges
MAJORITY_LOST = "a majority is lost"


def transfer_given_up(stage: Directed) -> Episode:
    """The leader hands over to one that never hears of it, and goes on in its own term; those that share a volume lose nothing."""
    cast, sharing = stage._cast(), [host.mount for host in stage.simulation.hosts if host.shared and host.mount.session]
    if cast is None or not sharing:
        return
    leader, (heir, *_) = cast
    raft = raft_of(leader)
    term, until_ms = raft.term, raft.member.transfer_until_ms
    stage._apart([leader], [heir], back_too=False)
    with contextlib.suppress(Error):
        raft.transfer(raft_of(heir).id)
    if not raft.member.transferee:
        return
    leader.wake()
    stage._write(leader, lambda reply: None)  # it is refused as long as the transfer lasts
    yield Until(lambda: raft_of(leader) is raft and not raft.member.transferee)
    if raft.role is not Role.LEADER or raft.term != term or raft.member.transfer_until_ms == until_ms:
        return
    stage._together([leader], [heir])
    stage.world.count(TRANSFERS_GIVEN_UP)
    yield JUDGED_NS


def ended_by_hand(stage: Directed) -> Episode:
    """An administrator ends the session of a mount that works, as `node remove` does: again and again, until it has ended."""
    mounts = [host.mount for host in stage.simulation.hosts if host.mount.up and host.mount.session]
    if not mounts:
        return
    mount = stage.dice.choice(mounts)
    command = c.EndSession(mount.session, mount.epoch, False)
    checks = stage.simulation.checks
    checks.renewals.exempt(command.session)
    for _ in range(80):
        leader = stage.simulation.leader()
        if leader is not None:
            leader.ask(command, lambda reply: None)
        yield 250 * MS
        if command.session in checks.ended:
            stage.world.count(ENDED_BY_HAND)
            return


def ended_behind_takeover(stage: Directed) -> Episode:
    """A successor goes on under the write leases of a dead worker, and then its session ends with data held back under them."""
    hosts = [host for host in stage.simulation.hosts if host.shared and not host.uncached and host.mount.up and host.mount.sharing.dirty]
    if not hosts:
        return
    host = stage.dice.choice(hosts)
    mount, session = host.mount, host.mount.session
    adopted = {ino: held.epoch for ino, held in mount.sharing.dirty.items()}
    mount.kill_worker(MS)
    yield Until(lambda: mount.up and mount.session)
    yield Until(lambda: [ino for ino, held in mount.sharing.dirty.items() if held.life == mount.life and held.epoch == adopted.get(ino)])
    if host.mount is not mount or mount.session != session:
        return
    stage._apart([host], stage.simulation.nodes)
    yield Until(lambda: session in stage.simulation.checks.ended, within_ns=30 * SECOND)
    yield stage.dice.randrange(4 * SECOND)  # others write
    stage._heal()
    yield Until(lambda: mount.session not in (0, session))
    stage.world.count(ENDED_BEHIND_TAKEOVER, bool(mount.sharing.aside))
    yield Until(lambda: not mount.sharing.aside)


def _halves_that_stay(membership: Any, member: str) -> bool:
    """Whether both configurations of a joint keep a majority when this member's journal is lost for good."""
    halves = [half for half in (membership.voters(), membership.outgoing_voters()) if half]
    return all(len(half - {member}) * 2 > len(half) for half in halves)


def fault_in_joint(stage: Directed) -> Episode:
    """A voter is made a learner; while both configurations count, somebody dies, stops, is cut off, or loses its journal."""
    cast = stage._cast()
    if cast is None:
        return
    may_lose = stage.dice.random() < 0.6 and stage.faults._harmable() is not None
    leader, others = cast
    raft, out = raft_of(leader), others[0]
    outgoing = raft_of(out).id
    members = [structs.replace(one, voter=one.voter and one.id != outgoing) for one in raft.membership.members]
    try:
        raft.propose_membership(members)
    except Error:
        return
    leader.wake()
    yield stage.dice.choice([0, 0, MS // 5, MS, 2 * MS])
    if not (raft_of(leader) is raft and raft.role is Role.LEADER and raft.membership.joint):
        return
    kinds: list[Callable[[], Any]] = [
        lambda: leader.die_and_return(power=False, after_ns=2 * SECOND),
        lambda: leader.die_and_return(power=True, after_ns=2 * SECOND),
        lambda: leader.pause(3 * SECOND),
        lambda: stage._apart([leader], others),
        lambda: stage._apart([leader, out], others[1:]),
        lambda: stage._apart([out], stage.simulation.nodes),
        lambda: others[-1].die_and_return(power=True, after_ns=2 * SECOND),
        lambda: setattr(stage.dice.choice(stage.simulation.nodes).disk, "budget", stage.dice.randrange(8)),
    ]
    losable = [node for node in stage.simulation.nodes if raft_of(node) and _halves_that_stay(raft.membership, raft_of(node).id)]
    if may_lose and losable:
        lost = stage.dice.choice(losable)
        kinds = [lambda: (lost.die_and_return(power=True, after_ns=SECOND), lost.disk.wipe(), stage.world.count(LOST_IN_JOINT))]
    stage.world.count(FAULTS_IN_JOINT)
    stage.dice.choice(kinds)()
    yield 4 * SECOND
    stage._heal()
    yield Until(lambda: _settled(stage), within_ns=30 * SECOND)


def _settled(stage: Directed) -> bool:
    leader = stage.simulation.leader()
    raft = None if leader is None else raft_of(leader)
    return raft is not None and not raft.membership.joint and len(raft.membership.voters()) == len(stage.simulation.nodes)


def majority_lost(stage: Directed) -> Episode:
    """It is played when the run has come to its end (lost_majority.py)."""
    yield 5 * SECOND


EPISODES: dict[str, Callable[[Directed], Episode]] = {
    "figure 8": Directed.figure_8,
    "a deposed leader is asked": Directed.deposed,
    "a laggard stands for election": Directed.laggard,
    "a voter is wiped": Directed.wiped,
    "power cuts in a promise": Directed.promise,
    "a lease is renewed late": Directed.late_lease,
    "a transfer is given up": transfer_given_up,
    "a session is ended by hand": ended_by_hand,
    "a fault inside a joint change": fault_in_joint,
    "a session ends behind a takeover": ended_behind_takeover,
    MAJORITY_LOST: majority_lost,
}
COUNTS_IN_ALL_SEEDS = ("looks at mounts that were served for long", LEADERS_CHANGED, ENDED_BY_HAND, LOST_MAJORITIES)
COUNTS_OF_EPISODES = {
    "a transfer is given up": TRANSFERS_GIVEN_UP,
    "a session is ended by hand": ENDED_BY_HAND,
    "a fault inside a joint change": FAULTS_IN_JOINT,
    "a session ends behind a takeover": ENDED_BEHIND_TAKEOVER,
    MAJORITY_LOST: LOST_MAJORITIES,
}
