"""Cases of the differential test, kept as lists: the mode of the directory, then steps (user, operation, arguments).

`tests/differential/user_process.py` says what the operations do.  A failing run of test_differential.py prints its example in this form.
One line of each case says what the product once did wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.differential import machine
from tests.differential.rig import Pair, pair

pytestmark = pytest.mark.root

CASES: dict[str, tuple[int, list[machine.Step]]] = {
    # ctime stayed: the request has an empty mask
    "chown to nobody is a change": (0o777, [("root", "chown", ".", -1, -1, False)]),
    # F_GETLK named the caller's own lock
    "no lock of one's own is in the way": (
        0o777,
        [("root", "open", 0, "a", 66, 420), ("root", "lock", 0, 6, 1, 0, 0), ("root", "getlk", 0, 5, 0, 0, 0)],
    ),
    "a mount that is made read-only, with a writer and without": (
        0o777,
        [
            ("ann", "open", 0, "a", 66, 420), ("ann", "write", 0, 1, 100), ("root", "remount", True), ("ann", "remount", True),
            ("ann", "close", 0), ("ann", "open", 1, "a", 0, 0), ("root", "unlink", "a"), ("root", "remount", True), ("ann", "close", 1),
            ("ann", "mkdir", "d", 493), ("root", "remount", True), ("ann", "mkdir", "b", 493), ("bob", "open", 0, "d", 66, 420),
            ("bob", "chmod", "d", 448), ("ann", "utime", "d", "now", "now", True), ("ann", "access", "d", 2), ("root", "remount", False),
            ("ann", "mkdir", "b", 493),
        ],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def both(make_node, tmp_path_factory) -> Iterator[Pair]:
    with pair(make_node, tmp_path_factory.mktemp("cases")) as made:
        yield made


@pytest.mark.parametrize("name", CASES)
def test_case(both, name):
    machine.replay(both.bench(), *CASES[name])
