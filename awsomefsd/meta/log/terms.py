"""The term of each entry, as runs of equal terms, because a term has many entries.  Pure.

The first run begins with the entry *before* the oldest one kept (the base): a comparison of two logs needs its term too.
"""

from __future__ import annotations

from bisect import bisect_right


class Terms:
    """The terms of the entries base, base + 1, … last."""

    __slots__ = ("_firsts", "_terms", "base", "last")

    def __init__(self, base: int, term: int) -> None:
        self.base = self.last = base
        self._firsts = [base]
        self._terms = [term]

    def append(self, index: int, term: int) -> None:
        """Gives the entries up to `index` the term `term`."""
        assert index > self.last
        if term != self._terms[-1]:
            self._firsts.append(self.last + 1)
            self._terms.append(term)
        self.last = index

    def of(self, index: int) -> int | None:
        """Returns the term of an entry; None if it is not known (any more)."""
        if not self.base <= index <= self.last:
            return None
        return self._terms[bisect_right(self._firsts, index) - 1]

    def truncate_after(self, index: int) -> None:
        """Forgets the terms of entries > `index`."""
        assert self.base <= index <= self.last
        keep = bisect_right(self._firsts, index)
        del self._firsts[keep:], self._terms[keep:]
        self.last = index

    def drop_before(self, base: int) -> None:
        """Forgets the terms of entries < `base`."""
        if base <= self.base:
            return
        assert base <= self.last
        keep = bisect_right(self._firsts, base) - 1
        del self._firsts[:keep], self._terms[:keep]
        self._firsts[0] = self.base = base
