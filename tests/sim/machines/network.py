"""The network between machines: datagrams between addresses, lost, doubled, reordered, delayed, and cut in one direction or both.

Cuts are sets of directed pairs of machines; a *bridge* leaves one machine that reaches both halves.  What one machine says to itself (a
worker to its own daemon, over a unix socket) is never lost on the way, but it dies with either end.  Connections are made of this by
links.py; raft's messages are sent as they are, which is more than TCP does to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.sim.world import MS, World

LOCAL_NS = 20_000


@dataclass
class Weather:
    """How bad it is now; changed by faults.py."""

    loss: float = 0.0
    double: float = 0.0
    late: float = 0.0  # how many get an extra delay, and so come after later ones
    late_ns: int = 300 * MS
    base_ns: int = 200_000
    spread_ns: int = 300_000


@dataclass
class Network:
    world: World
    weather: Weather = field(default_factory=Weather)
    cut: set[tuple[str, str]] = field(default_factory=set)
    slow: dict[tuple[str, str], int] = field(default_factory=dict)  # what this way takes longer

    def __post_init__(self) -> None:
        self._dice = self.world.dice("network")

    def reaches(self, source: str, target: str) -> bool:
        return (source, target) not in self.cut

    def send(self, source: str, target: str, deliver: Callable[..., None], *arguments: Any, owner: Any, ahead_ns: int = 0) -> None:
        """`deliver` is called when it arrives, if `owner` (who receives) still lives the same life; never in this call."""
        world, weather, dice = self.world, self.weather, self._dice
        when = world.now_ns + ahead_ns
        if source == target:
            world.at(when + LOCAL_NS, deliver, *arguments, owner=owner)
            return
        if (source, target) in self.cut or (weather.loss and dice.random() < weather.loss):
            world.count("messages lost")
            return
        times = 1
        if weather.double and dice.random() < weather.double:
            times = 2
            world.count("messages doubled")
        for _ in range(times):
            delay = weather.base_ns + int(dice.random() * weather.spread_ns) + self.slow.get((source, target), 0)
            if weather.late and dice.random() < weather.late:
                delay += int(dice.random() * weather.late_ns)
                world.count("messages late")
            world.at(when + delay, self._arrive, source, target, deliver, arguments, owner=owner)

    def _arrive(self, source: str, target: str, deliver: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if (source, target) in self.cut:  # what was on its way when the wire was cut
            self.world.count("messages lost")
            return
        deliver(*arguments)

    # --- cuts --------------------------------------------------------------------------------------------------------------
    def isolate(self, one: Iterable[str], other: Iterable[str], *, back_too: bool = True) -> None:
        for source in one:
            for target in other:
                if source != target:
                    self.cut.add((source, target))
                    if back_too:
                        self.cut.add((target, source))

    def heal(self) -> None:
        self.cut.clear()
        self.slow.clear()

    def calm(self) -> None:
        self.weather = Weather()
