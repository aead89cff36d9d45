"""The web page that the daemon serves where `ui.listen` is set.  It asks this daemon by the admin socket, as `awsomefsd ui` does."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from awsomefsd.base.errors import Refused
from awsomefsd.config.settings import Settings
from awsomefsd.daemon.worker_config import certificates

if TYPE_CHECKING:
    from awsomefsd.ui.running import RunningUi

logger = logging.getLogger(__name__)


class WebPage:
    """The page, serving when constructed, if there is to be one; `undo` ends it.  Raises ConfigError."""

    def __init__(self, settings: Settings, undo: ExitStack) -> None:
        self._page: RunningUi | None = None
        if settings.ui.listen:
            self._page = _serve(settings)
            undo.callback(self._page.close)
            logger.info("the web page is served", extra={"at": self._page.address})

    def login(self, operator: bool) -> tuple[str, float]:
        """Returns (an address that signs in once, for how many seconds).  Raises Refused without a page."""
        from awsomefsd.ui.sign_in import CODE_S, OPERATOR, READER

        if self._page is None:
            raise Refused("this daemon serves no web page: set ui.listen and restart it, or use `awsomefsd ui` without --login")
        return self._page.login(OPERATOR if operator else READER), CODE_S


def _serve(settings: Settings) -> RunningUi:
    from awsomefsd.admin.client import AdminClient
    from awsomefsd.ui.running import RunningUi
    from awsomefsd.ui.sign_in import SignIn

    used = lambda source: logger.info("somebody has signed in to the web page", extra={"from": source})  # noqa: E731
    _authorities, certificate, key = certificates(settings)
    connect = lambda: AdminClient(settings.admin_socket)  # noqa: E731
    return RunningUi("ui.listen", settings.ui.listen, connect, (certificate, key), settings.ui.hosts, SignIn(used=used))
