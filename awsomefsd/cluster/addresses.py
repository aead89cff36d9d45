"""The addresses under which other nodes reach this one: what is configured, else what the kernel would route with."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

from awsomefsd.base.errors import ConfigError
from awsomefsd.config.settings import CONTROL_PORT, Settings, parse_endpoint

# Addresses that no host has (TEST-NET-1, documentation): the way there begins at the address of the default route's interface.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def join_host(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_endpoint(text: str) -> tuple[str, int]:
    """Returns (host, port) of "host:port"; the host may be a name.  Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65_535:
        raise ConfigError(f"{text!r} is not an endpoint; write a host and a port, such as node1.example.net:{CONTROL_PORT}")
    return host.strip("[]"), int(port)


def own_address(toward: str = "") -> str:
    """Returns the address of this machine on the way to `toward` (default: to anywhere), "" if there is no way.  Sends nothing."""
    for family, host in ((_family(toward), toward),) if toward else _ELSEWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            found: str = probe.getsockname()[0]
            if not ipaddress.ip_address(found).is_unspecified:
                return found
    return ""


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def advertised(settings: Settings, listen: str, toward: str = "") -> str:
    """Returns "host:port" of a port of this node for others, "" if it is off.  Raises ConfigError if no address can be found out."""
    if not listen:
        return ""
    host, port = parse_endpoint(listen)
    if settings.cluster.advertise:
        return join_host(settings.cluster.advertise, port)
    if not ipaddress.ip_address(host).is_unspecified:
        return join_host(host, port)
    found = own_address(toward)
    if not found:
        raise ConfigError(
            "no network interface has a route to other machines, so they cannot be told where this node is; set cluster.advertise"
        )
    return join_host(found, port)


def described(settings: Settings, toward: str = "") -> tuple[str, str]:
    """Returns (control, metadata) as others reach them; "" for one that is off, or (for now) cannot be found out."""
    found = []
    for listen in (settings.cluster.listen, settings.metadata.listen):
        try:
            found.append(advertised(settings, listen, toward))
        except ConfigError:
            found.append("")
    return found[0], found[1]
