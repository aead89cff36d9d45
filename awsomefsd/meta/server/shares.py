"""Counts the places that mounts take, each up to a share of its own, all together up to a bound.  Pure."""

from __future__ import annotations


class Shares:
    """One thread uses it.  `each_max`: places of one mount; `all_max`: of all mounts together."""

    __slots__ = ("_all_max", "_each_max", "_taken", "count")

    def __init__(self, each_max: int, all_max: int) -> None:
        self._each_max = each_max
        self._all_max = all_max
        self._taken: dict[int, int] = {}  # by mount; 0: all clients without one
        self.count = 0

    def take(self, mount: int) -> bool:
        """Takes a place.  False: the mount has its share already, or there is no place left."""
        taken = self._taken.get(mount, 0)
        if taken >= self._each_max or self.count >= self._all_max:
            return False
        self._taken[mount] = taken + 1
        self.count += 1
        return True

    def give_back(self, mount: int) -> None:
        left = self._taken[mount] - 1
        assert left >= 0, "a place is given back once"
        self.count -= 1
        if left:
            self._taken[mount] = left
        else:
            del self._taken[mount]
