"""The RPCs about stores of objects."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import grpc

from awsomefsd.admin.grpc_errors import edge, fail
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import ConfigError, Error, Overloaded
from awsomefsd.base.types import KEPT, STORE_STATES, StoreInfo
from awsomefsd.node.stores import StoreAsked, StoreCatalog
from awsomefsd.tier.credentials import Credentials

CHECKS_MAX = 2  # at once: each holds an object of 64 MiB

logger = logging.getLogger(__name__)


class StoreRpcs:
    """The RPCs about stores."""

    def __init__(self, stores: StoreCatalog) -> None:
        self._stores = stores
        self._free = threading.BoundedSemaphore(CHECKS_MAX)

    def AddStore(self, request: pb.AddStoreRequest, context: grpc.ServicerContext) -> Iterator[pb.StoreProgress]:
        def added() -> Iterator[pb.StoreProgress]:
            made = yield from _told(self._stores.add(request.name, request.url, _asked(request.settings), _leave(context)))
            logger.info("store added", extra={"store": made.name, "url": made.url})
            yield pb.StoreProgress(store=store_message(made))

        return self._streamed(added, context)

    def CheckStore(self, request: pb.CheckStoreRequest, context: grpc.ServicerContext) -> Iterator[pb.StoreProgress]:
        def found() -> Iterator[pb.StoreProgress]:
            if bool(request.name) == bool(request.url):
                raise ConfigError("a check is of a store that the cluster has, by its name, or of another one, by its URL")
            if request.name:
                yield from _told(self._stores.check(request.name, _leave(context)))
            else:
                yield from _told(self._stores.check_new(request.url, _asked(request.settings), _leave(context)))

        return self._streamed(found, context)

    @edge
    def ListStores(self, request: pb.ListStoresRequest, context: grpc.ServicerContext) -> pb.ListStoresReply:
        found = [self._stores.find(request.name)] if request.name else self._stores.all()
        return pb.ListStoresReply(stores=[store_message(info) for info in found])

    @edge
    def SetStore(self, request: pb.SetStoreRequest, context: grpc.ServicerContext) -> pb.Store:
        if request.settings.sealed:
            raise ConfigError("whether a store is sealed is said when it is added, and stays so")
        changed = _end_of(self._stores.change(request.name, _asked(request.settings), _leave(context)))
        logger.info("store changed", extra={"store": changed.name, "url": changed.url})
        return store_message(changed)

    @edge
    def DetachStore(self, request: pb.DetachStoreRequest, context: grpc.ServicerContext) -> pb.Store:
        gone = self._stores.detach(request.name)
        logger.warning("store detached", extra={"store": gone.name, "url": gone.url})
        return store_message(gone)

    def _streamed(self, work: Callable[[], Iterator[pb.StoreProgress]], context: grpc.ServicerContext) -> Iterator[pb.StoreProgress]:
        if not self._free.acquire(blocking=False):
            fail(context, Overloaded(f"{CHECKS_MAX} stores are being checked already; try again"))
            return
        try:
            yield from work()
        except Error as err:
            logger.info("admin call refused", extra={"rpc": "a store", "reason": str(err)})
            fail(context, err)
        finally:
            self._free.release()


def store_message(info: StoreInfo) -> pb.Store:
    """Returns a store as the API shows it; nothing of it is secret."""
    options = info.options
    lost = options.credentials == KEPT and not info.has_secret
    return pb.Store(
        name=info.name, url=info.url, state=STORE_STATES[info.state], endpoint=options.endpoint, region=options.region,
        credentials="lost" if lost else options.credentials, ca=options.ca, proxy=options.proxy, sealed=options.sealed,
        rpo_ms=options.rpo_ms, keep_ms=options.keep_ms, era=info.era, era_number=info.era_number, created_ns=info.created_ns,
    )  # fmt: skip


def _asked(settings: pb.StoreSettings) -> StoreAsked:
    said = {name: getattr(settings, name) for name in ("endpoint", "region", "ca", "proxy", "rpo_ms", "keep_ms") if settings.HasField(name)}
    keys = settings.keys
    return StoreAsked(
        **said, keys=Credentials(keys.key_id, keys.secret, keys.token) if settings.HasField("keys") else None, role=settings.role,
        sealed=settings.sealed,
    )  # fmt: skip


def _leave(context: grpc.ServicerContext) -> Callable[[Callable[[], object]], object]:
    """What is under way ends when nobody waits for it any more."""
    return lambda end: None if context.add_callback(end) else end()


def _told(work: Generator[dict[str, Any], None, Any]) -> Generator[pb.StoreProgress, None, Any]:
    try:
        while True:
            yield pb.StoreProgress(finding=pb.StoreFinding(**next(work)))
    except StopIteration as ended:
        return ended.value
    finally:
        work.close()


def _end_of(work: Generator[Any, None, StoreInfo]) -> StoreInfo:
    found: list[StoreInfo] = []

    def whole() -> Iterator[Any]:
        found.append((yield from work))

    for _ in whole():
        pass
    return found[0]
