"""The clocks of a simulated machine: with a rate of their own, and jumps, instead of CLOCK_BOOTTIME, CLOCK_MONOTONIC and CLOCK_REALTIME.

The boot clock drifts (bounded: leases are promises about clocks that run at nearly the same rate) and never goes back; the wall clock is
set to anything by anybody, also backwards.  A pause of the process is no matter of clocks: they go on (see base/identity.py).
"""

from __future__ import annotations

from tests.sim.world import SECOND, World

DRIFT_MAX = 200e-6  # of a computer's oscillator, generously; NTP slews by at most 500e-6
WALL_START_NS = 1_700_000_000 * SECOND


class SimClock:
    def __init__(self, world: World, name: str) -> None:
        dice = world.dice(f"clock/{name}")
        self._world = world
        self._rate = 1.0 + dice.uniform(-DRIFT_MAX, DRIFT_MAX)
        self._at_ns = 0  # true time of the last change of rate
        self._boot_at_ns = dice.randrange(1, 1000) * SECOND
        self._wall_offset_ns = dice.randrange(-2 * SECOND, 2 * SECOND)
        self.ahead_ns = 0  # of true time: what the running turn has spent on the disk

    def boot_ns(self) -> int:
        true = self._world.now_ns + self.ahead_ns
        return self._boot_at_ns + int((true - self._at_ns) * self._rate)

    def wall_ns(self) -> int:
        return WALL_START_NS + self.boot_ns() + self._wall_offset_ns

    def true_ns(self, boot_ns: int) -> int:
        """True time at which the boot clock will show that."""
        return self._at_ns + int((boot_ns - self._boot_at_ns) / self._rate) + 1

    def drift(self, rate: float) -> None:
        """From now on it runs `rate` too fast."""
        self._boot_at_ns, self._at_ns = self.boot_ns(), self._world.now_ns + self.ahead_ns
        self._rate = 1.0 + rate

    def set_wall(self, by_ns: int) -> None:
        self._wall_offset_ns += by_ns
