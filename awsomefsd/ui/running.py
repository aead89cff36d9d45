"""The page of a node, running: socket, site, charts and sign-in in one object.  The command `awsomefsd ui` has one, and a daemon may."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable

from awsomefsd.admin.client import AdminClient
from awsomefsd.base.errors import ConfigError
from awsomefsd.ui.files import files
from awsomefsd.ui.history import History
from awsomefsd.ui.readings import Readings
from awsomefsd.ui.server import NodeCertificate, UiServer, listen
from awsomefsd.ui.sign_in import SignIn
from awsomefsd.ui.site import Site

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class RunningUi:
    """The page at `address` ("IP:PORT"), serving when constructed.  Raises ConfigError, whose message names `setting`.

    It has TLS with the node's `certificate` (files of certificate and key) unless the address is a local one.  `names`: of this host, in
    requests; an address of it always fits.  `connect` returns a client of the daemon's admin API.
    """

    def __init__(
        self,
        setting: str,
        address: str,
        connect: Callable[[], AdminClient],
        certificate: tuple[str, str],
        names: Iterable[str],
        sign_in: SignIn,
    ) -> None:
        host = ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
        tls = None if host.is_loopback else NodeCertificate(*certificate)
        if tls is not None:
            tls()
        try:
            files()
        except OSError as err:
            raise ConfigError(f"{err.filename}: {err.strerror}; this build lacks a file of the page, install it again") from err
        listener = listen(setting, address)
        port = int(listener.getsockname()[1])
        self._sign_in = sign_in
        self._history = History(connect)
        known = frozenset(name.lower() for name in (*names, "localhost", socket.gethostname()))
        self._server = UiServer(listener, Site(Readings(connect), self._history, sign_in, known, port).answer, tls)
        shown = EVERYWHERE.get(str(host), str(host))
        self.address = f"{'http' if tls is None else 'https'}://{f'[{shown}]' if host.version == 6 else shown}:{port}"
        self._server.start()

    def login(self, role: str) -> str:
        """Returns the address with a new code, which signs in once, for a session of that role."""
        return f"{self.address}/sign-in#{self._sign_in.make_code(role)}"

    def close(self) -> None:
        """Ends the page, and waits for its threads but those that answer somebody."""
        self._server.close()
        self._history.close()
