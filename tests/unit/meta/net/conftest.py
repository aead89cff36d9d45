from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rigs.peer_net import A, B, Net


@pytest.fixture
def net() -> Iterator[Net]:
    """Two nodes that listen and are not started."""
    made = Net()
    made.listen(A)
    made.listen(B)
    yield made
    made.close()
