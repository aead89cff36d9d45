"""A daemon without an identity: it waits for `init` or `join`, or founds or joins by itself when a token is set.

When any process has written node.json, this phase ends and the daemon goes on.  While the daemon waits it is READY for the service manager
(a restart would change nothing), holds no lock on the state directory, and answers `status` with the reason of its waiting; every other
call of the admin API is refused with the same words.  Founding or joining with a token may fail for a while (no other node yet, no leader)
and is tried until it is done.  A token that can never work ends the daemon at once, with the reason.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

import trio

from awsomefsd.base import identity, sockets
from awsomefsd.base.errors import AlreadyExists, ConfigError, Error, Unavailable
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.base.metrics import Registry
from awsomefsd.base.watchdog import keep_fed
from awsomefsd.cluster.addresses import advertised
from awsomefsd.config.settings import Settings
from awsomefsd.daemon.way_in import WAITS, Words, Work
from awsomefsd.node.health.probes import LoopBeat, Probes

logger = logging.getLogger(__name__)
LOOK_S = 0.1
JOIN_TRY_S = 5.0
TELL_S = 0.5


def wait(settings: Settings) -> bool:
    """Blocks until this node has an identity, and returns True; False if a signal ended the waiting.

    Called by the main thread, without an event loop: it runs one of its own.  Raises Error for a token that can never work.
    """
    there = identity.identity_path(settings.state_dir).exists
    if not there():
        failed: list[Error] = []
        trio.run(_wait, settings, failed)
        if failed:
            raise failed[0]
    os.environ.pop("AWSOMEFSD_TOKEN", None)  # nothing that this process starts inherits it
    if there():
        shutil.rmtree(settings.state_dir / "founding", ignore_errors=True)  # a crash may have left it; it holds an authority's key
    return there()


async def _wait(settings: Settings, failed: list[Error]) -> None:
    identity.make_directory(settings.state_dir, 0o700)
    with ExitStack() as undo:
        try:  # two would vote twice in one name, and take each other's socket
            undo.enter_context(identity.WaitingLock(settings.state_dir, "a second daemon"))
            if identity.identity_path(settings.state_dir).exists():  # another daemon's wait was over meanwhile
                return
            work = _work(settings, undo)
            door = _admin(settings, undo, work.words)
            heartbeat = _page(settings, undo, work.words)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
                nursery.start_soon(door.serve)
                nursery.start_soon(_tell, work.words)
                nursery.start_soon(keep_fed, lambda: True)
                nursery.start_soon(heartbeat.beat)
                try:
                    await work.run()
                    while not identity.identity_path(settings.state_dir).exists():
                        await trio.sleep(LOOK_S)
                except Error as err:  # not through the nursery, which would wrap it
                    failed.append(err)
                nursery.cancel_scope.cancel()
        except Error as err:
            failed.append(err)


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            logger.info("daemon stops; it was waiting", extra={"signal": signal.Signals(number).name})
            sockets.notify_systemd("STOPPING=1")
            scope.cancel()
            return


async def _tell(said: Words) -> None:
    """Sends the state to the service manager and to the log, when it changes."""
    last = ""
    while True:
        if (words := said()[0]) != last:
            last = words
            logger.info(words)
            sockets.notify_systemd(f"READY=1\nSTATUS={words}")
        await trio.sleep(TELL_S)


def _admin(settings: Settings, undo: ExitStack, said: Words) -> Any:
    from awsomefsd.admin.server import Door, GrpcServer
    from awsomefsd.admin.uninitialized import WaitingService

    identity.make_directory(settings.run_dir, 0o711)
    grpc = GrpcServer(WaitingService(settings, said), settings.run_dir)
    undo.callback(grpc.stop, 0.2)
    refused = Registry().counter("awsomefsd_admin_refused_total", "Admin connections of users that are not allowed.")
    return Door(settings.admin_socket, grpc, settings.admin_group, refused)


def _page(settings: Settings, undo: ExitStack, said: Words) -> LoopBeat:
    """Opens the page of metrics for its probes: this daemon lives, and is not ready."""
    heartbeat = LoopBeat()
    if settings.metrics.listen:
        from awsomefsd.node.health.exporter import Exporter

        page = Exporter(Registry(), settings.metrics.listen, settings.run_dir, Probes(heartbeat, lambda: said()[0]))
        undo.callback(page.close)
    return heartbeat


# --- with a token -----------------------------------------------------------------------------------------------------------------


def _work(settings: Settings, undo: ExitStack) -> Work:
    """Returns the work that founds or joins a cluster with the token; without one, work that does nothing."""
    text, renewed = settings.token.get_secret_value(), settings.kubernetes.join_token
    if (text or renewed) and not settings.cluster.listen:
        raise ConfigError("a token is set, but cluster.listen is off; set cluster.listen, or remove the token")
    configured = _configured(settings, text, undo) if text else None
    if renewed is None:
        return configured or Work(trio.lowlevel.checkpoint, lambda: [WAITS])
    from awsomefsd.cluster.control.join import join
    from awsomefsd.daemon.renewed_token import RenewedToken, work

    def entered() -> bool:
        return identity.identity_path(settings.state_dir).exists()

    return work(RenewedToken(renewed, text), lambda token: join(settings, token, deadline_s=JOIN_TRY_S), configured, entered)


def _configured(settings: Settings, text: str, undo: ExitStack) -> Work:
    """Returns the work that founds or joins a cluster with the configured token."""
    from awsomefsd.cluster.pki import founding_token

    if not founding_token.is_founding(text):
        return _joining(settings, text)
    token = founding_token.parse(text)
    from awsomefsd.cluster.discovery import Discovery
    from awsomefsd.cluster.founding.driver import FoundingDriver
    from awsomefsd.cluster.founding.files import FoundingFiles

    files = FoundingFiles(settings.state_dir, token)
    found: Callable[[], Iterable[str]] = list
    if settings.cluster.discovery:
        with suppress(ConfigError):  # no route to any node: multicast has none either
            control = advertised(settings, settings.cluster.listen)
            discovery = Discovery(token.cluster_uuid, files.node, control)
            undo.callback(discovery.close)
            found = discovery.addresses
    driver = FoundingDriver(settings, token, files, found, lambda: time.time_ns() // NS_PER_MS)
    return Work(driver.run, driver.describe)


def _joining(settings: Settings, text: str) -> Work:
    """Returns the work that asks with a join token until a node of the cluster answers.  A refusal of the cluster ends the daemon."""
    from awsomefsd.cluster.control.join import join

    last = ["waiting: asking the token's endpoints to let this node in"]

    async def work() -> None:
        while True:
            try:
                await trio.to_thread.run_sync(lambda: join(settings, text, deadline_s=JOIN_TRY_S), abandon_on_cancel=True)
                return
            except AlreadyExists:
                return
            except Unavailable as err:
                last[:] = [f"waiting: {err}"]
                await trio.sleep(1)

    return Work(work, lambda: list(last))
