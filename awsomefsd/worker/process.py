"""The process of a mount worker, which the keeper starts: `awsomefsd worker --keeper-fd N`."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from typing import Any

from awsomefsd.base import log as logs
from awsomefsd.base.errors import ConfigError
from awsomefsd.keeper.worker_link import KeeperLink
from awsomefsd.worker.config import WorkerConfig
from awsomefsd.worker.worker import Worker

THREAD_DIED_EXIT_CODE = 70
GARBAGE_LOOKS = (10_000, 20, 50)  # gc thresholds: there are few circles, and looking for them took a tenth of a create
GIL_SWITCH_S = 0.0005  # KERNEL-FUSE.md: the default of 5 ms hurts threads that block in read(2)

log = logging.getLogger("awsomefsd.worker")


def _thread_died(args: threading.ExceptHookArgs) -> None:
    """A thread ended by a bug: whoever waits for it would wait for ever, and a mount without readers would pass for unmounted.  A successor
    takes everything up, so this process ends."""
    log.critical("thread %s died, ending", args.thread.name if args.thread is not None else "?", exc_info=args.exc_value)
    logging.shutdown()
    os._exit(THREAD_DIED_EXIT_CODE)


def _configured(wire: dict[str, Any]) -> WorkerConfig:
    """The configuration, with the log set up as it says."""
    try:
        config = WorkerConfig.from_wire(wire)
    except ConfigError:
        logs.setup("worker", "info", "text")
        raise
    logs.setup("worker", config.log_level, config.log_format)
    return config


def main(keeper_fd: int) -> int:
    """Entry of `awsomefsd worker --keeper-fd N`; the exit status is 0 only after an unmount with everything flushed."""
    sys.setswitchinterval(GIL_SWITCH_S)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = _thread_died
    link = KeeperLink(keeper_fd)
    try:
        worker = Worker(link, _configured(link.start_message["config"]))
        worker.start()
    except Exception:
        log.exception("the mount cannot be served mount=%s", link.start_message["mount"])
        return 1
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_LOOKS)
    log.info("serving mount=%s dir=%s worker=%d", link.start_message["mount"], link.start_message["dir"], link.start_message["worker"])
    worker.serve()
    return 0
