"""Room for the descriptors of very many connections."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

DESCRIPTORS = 8_192


@contextmanager
def many_descriptors() -> Iterator[None]:
    """The soft limit of this process is DESCRIPTORS at least, as far as the hard one allows; afterwards it is as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
