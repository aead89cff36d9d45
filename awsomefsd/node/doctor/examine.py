"""Runs the checks: all of a node, or those before an install.  One that fails by a defect hides no other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from awsomefsd.config.settings import Settings
from awsomefsd.node.doctor import host, network, running
from awsomefsd.node.health.codes import CODES, SEVERITIES, HealthFinding

log = logging.getLogger(__name__)


class Answers(NamedTuple):
    """What the daemon answered to GetStatus and ListNodes, as dictionaries; `trouble`: why it did not.  `status` has no "node" where this
    machine is in no cluster yet."""

    status: Mapping[str, Any] | None = None
    nodes: Sequence[Mapping[str, Any]] = ()
    trouble: str = ""

    @property
    def pids(self) -> list[int]:
        return [self.status["pid"], self.status["keeper_pid"]] if self.status is not None else []


def preflight(settings: Settings) -> list[HealthFinding]:
    """Returns what would be wrong with a node of these settings on this host, worst first; needs no daemon, and starts none."""
    return _all(
        lambda: host.fitness(before_install=True),
        lambda: host.memory(settings, 1),
        lambda: host.state_directory(settings),
        lambda: host.permissions(settings),
        lambda: network.listening(settings),
        lambda: network.names(settings, ()),
        lambda: running.orphans(None),
    )


def node(settings: Settings, answers: Answers) -> list[HealthFinding]:
    """Returns what is wrong with this node and, as far as the daemon answers, with its cluster, worst first."""
    status = answers.status
    peers = running.peers(status, answers.nodes) if status is not None and status["node"] else []
    return _all(
        lambda: host.fitness(before_install=False),
        lambda: host.memory(settings, len(status["mounts"]) if status is not None else 1),
        lambda: host.state_directory(settings),
        lambda: host.permissions(settings),
        lambda: network.listening(settings, answers.pids or running.listener_of(settings.admin_socket)),
        lambda: network.names(settings, peers),
        lambda: network.reachable(peers),
        lambda: running.orphans(status),
        lambda: running.hung(status),
        lambda: running.pinned(settings.run_dir),
        lambda: _of_answers(answers),
    )


def _of_answers(answers: Answers) -> Iterator[HealthFinding]:
    status = answers.status
    if status is None:
        yield HealthFinding("DAEMON_GONE", answers.trouble)
        return
    yield from running.known(status)
    if status["node"]:
        yield from running.versions(status, answers.nodes)
        yield from running.restarts(status)


def _all(*checks: Callable[[], Iterable[HealthFinding]]) -> list[HealthFinding]:
    found: list[HealthFinding] = []
    for check in checks:
        try:
            found.extend(check())
        except Exception as err:  # the host is perhaps in a state that no check foresaw; the others still say what they find
            log.debug("a check failed", exc_info=True)
            found.append(HealthFinding("HOST_UNFIT", f"a check of the doctor failed: {type(err).__name__}: {err}"))
    known = sorted(dict.fromkeys(found), key=lambda one: SEVERITIES.index(CODES[one.code].severity) if one.code in CODES else 0)
    return [one for one in known if one.code in CODES]
