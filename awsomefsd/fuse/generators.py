"""What counts as a generator: Python's own, and in a compiled program also that of compiled code, which is another type.

`type(value) in GENERATORS`, never a comparison with types.GeneratorType: in the compiled program handlers are compiled and what they call
may be bytecode, so both kinds come.  That the compiler mends isinstance() was not relied on: it does not mend `type(value) is`, which is
quicker and stands where every request passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import GeneratorType


def _one() -> Iterator[None]:
    yield


GENERATORS: frozenset[type] = frozenset({GeneratorType, type(_one())})
