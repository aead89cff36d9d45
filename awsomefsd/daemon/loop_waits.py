"""Lets tasks of the event loop wait for what other threads end (base/wait.py, which workers import, without trio)."""

from __future__ import annotations

import contextlib
from typing import Any

import trio

from awsomefsd.base.wait import Wait


async def ended(wait: Wait) -> None:
    """Lets a task of the event loop sleep until a Wait has ended, on whatever thread, with or without an error."""
    over, loop = trio.Event(), trio.lowlevel.current_trio_token()

    def resume(_value: Any, _error: BaseException | None) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            loop.run_sync_soon(over.set)

    wait.start(resume)
    await over.wait()
