"""The leader answers in pages what nodes and workers report, so that no answer is larger than a frame; here they are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import ProtocolError
from awsomefsd.meta.api.messages import GetReports
from awsomefsd.meta.api.messages.devices import GetSightings, Sightings


def all_sightings(ask: Callable[[Any], Any]) -> Sightings:
    """Returns what all nodes see.  Blocks for the service; raises what `ask` raises, ProtocolError for a page that leads nowhere."""
    page: Sightings = ask(GetSightings())
    seen = list(page.seen)
    while after := page.more:
        page = ask(GetSightings(after))
        seen += page.seen
        _check_goes_on(page.more, after)
    return Sightings(seen, page.reporting, page.alone_ms)


def all_reports(ask: Callable[[Any], Any]) -> dict[int, dict[str, int]]:
    """Returns the figures of the workers of the asking node, by mount.  As `all_sightings`."""
    page = ask(GetReports())
    figures = dict(page.figures)
    while after := page.more:
        page = ask(GetReports(after))
        figures |= page.figures
        _check_goes_on(page.more, after)
    return figures


def _check_goes_on(more: Any, after: Any) -> None:
    if more and more <= after:
        raise ProtocolError(f"the reports behind {after} end at {more}")
