"""The addresses under which other nodes reach this one: what is configured, else what the kernel would route with."""

from __future__ import annotations

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.sockets import is_unspecified, join_host, own_address
from awsomefsd.config.settings import CONTROL_PORT, Settings, parse_endpoint


def split_endpoint(text: str) -> tuple[str, int]:
    """Returns (host, port) of "host:port"; the host may be a name.  Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65_535:
        raise ConfigError(f"{text!r} is not an endpoint; write a host and a port, such as node1.example.net:{CONTROL_PORT}")
    return host.strip("[]"), int(port)


def advertised(settings: Settings, listen: str, toward: str = "") -> str:
    """Returns "host:port" of a port of this node for others, "" if it is off.  Raises ConfigError if no address can be found out."""
    if not listen:
        return ""
    host, port = parse_endpoint(listen)
    if settings.cluster.advertise:
        return join_host(settings.cluster.advertise, port)
    if not is_unspecified(host):
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
