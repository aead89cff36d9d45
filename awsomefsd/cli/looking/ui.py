"""awsomefsd ui: serve the web page of this node until Ctrl-C."""

from __future__ import annotations

import ipaddress
import math
import signal
import threading
from typing import Any

import click

from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import say

LISTEN = "127.0.0.1:7480"


class _Address(click.ParamType):
    """An IP address and a port; port 0 is a free one."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        host, _, port = str(value).rpartition(":")
        try:
            found = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
            if port.isascii() and port.isdecimal() and int(port) <= 65_535 and (found.version == 6) == host.startswith("["):
                return str(value)
        except ValueError:
            pass
        self.fail(f'{value!r}: write an IP address and a port, such as "{LISTEN}" or "[fd00::1]:7480"', param, ctx)


@click.command(cls=CliCommand)
@click.option("--listen", type=_Address(), default=LISTEN, show_default=True, metavar="IP:PORT", help="Address of the page.")
@click.option("--login", is_flag=True, help="Print a login for the page that the daemon serves (setting ui.listen) instead.")
@click.option("--operator", is_flag=True, help="The browser may cordon, drain, scrub, collect and flush too, not only read.")
@click.pass_obj
def ui(invocation: Invocation, listen: str, login: bool, operator: bool) -> None:
    """Serve a web page that shows this node and its cluster, until Ctrl-C.

    Prints an address that signs a browser in once; each use prints the next.  The page shows cluster, health, nodes, devices, volumes,
    mounts, charts, conflicts and events, and changes nothing without --operator.  At an address that is not local it has TLS with the
    certificate of this node, which browsers do not know: compare it, or trust the authority of the cluster.
    """
    if not login:
        _serve(invocation, listen, operator)
        return
    with invocation.client() as client:
        made = client.call("MakeUiLogin", operator=operator)
    say(made.address)
    say(f"it signs one browser in, within {made.seconds // 60} minutes")


def _serve(invocation: Invocation, listen: str, operator: bool) -> None:
    from awsomefsd.admin.client import AdminClient
    from awsomefsd.base import log
    from awsomefsd.daemon.worker_config import certificates
    from awsomefsd.ui.running import RunningUi
    from awsomefsd.ui.sign_in import OPERATOR, READER, SignIn

    settings = invocation.settings
    invocation.client().close()  # a daemon answers, and this user may ask it
    log.setup("ui", settings.log.level, settings.log.format)
    ended, used = threading.Event(), threading.Semaphore(0)

    def was_used(source: str) -> None:
        say(f"{source} has signed in; the next address:")
        used.release()

    _authorities, certificate, key = certificates(settings)
    sign_in = SignIn(code_s=math.inf, used=was_used)
    page = RunningUi("--listen", listen, lambda: AdminClient(settings.admin_socket), (certificate, key), settings.ui.hosts, sign_in)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        say(f"the page is at {page.address}; this address signs in once:")
        while not ended.is_set():
            say(f"  {page.login(OPERATOR if operator else READER)}")
            while not ended.is_set() and not used.acquire(timeout=0.5):
                pass
    finally:
        page.close()
