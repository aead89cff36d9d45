"""The choice of the connection that gives up its place to a new one, where strangers may connect (decision 205).  Pure."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

Connection = TypeVar("Connection")
_V6_PREFIX = 64  # one machine has all addresses below it


@lru_cache(maxsize=1_024)  # the metadata thread asks for each place at each connection of a flood
def source_of(address: str) -> str:
    """Returns whom a connection from `address` counts for: the address, or the network of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    mapped = found.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((found, _V6_PREFIX), strict=False))


def gives_place(places: Mapping[Connection, str], newcomer: str) -> Connection:
    """Returns the connection that gives up its place: the oldest of the address that has the most, of the source that has the most.

    `places` has the address of each connection, oldest first, at least one; `newcomer` is the address of the one that comes, and counts.
    """
    sources = Counter(map(source_of, places.values()))
    sources[source_of(newcomer)] += 1
    most = max(sources.values())
    of_source = {one: address for one, address in places.items() if sources[source_of(address)] == most}
    addresses = Counter(of_source.values())
    if newcomer in addresses:
        addresses[newcomer] += 1
    most = max(addresses.values())
    return next(connection for connection, address in of_source.items() if addresses[address] == most)
