"""Names of machines and web pages, as requests write them: ``Host`` and ``Origin``, read strictly and compared."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple, Optional, Union

_IP = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,63}")
_PORTS = {"http": 80, "https": 443}
# Written out: what `is_private` of the standard library covers differs between versions of Python.
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
        "100.64.0.0/10",  # shared by carriers, and by the private networks of Tailscale and its like
        "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip


class Place(NamedTuple):
    """A host in lower case, without brackets and final dot, and the port if one was named."""

    host: str
    port: Optional[int]


class Origin(NamedTuple):
    """Whose web page asks. The port is always known for http and https."""

    scheme: str
    host: str
    port: Optional[int]


def place(text: str) -> Optional[Place]:
    """What a Host header or an authority names; None for what is neither a name nor an address."""
    match = re.fullmatch(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([0-9]{0,5}))?", text.strip(" \t").lower())
    if match is None:
        return None
    host, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and port > 65535:
        return None
    if host.startswith("["):
        found = address(host[1:-1]) if ":" in host else None
        return Place(str(found), port) if found is not None else None
    host = host[:-1] if host.endswith(".") else host
    found = address(host)
    if found is not None:
        return Place(str(found), port)
    return Place(host, port) if _NAME.fullmatch(host) and ".." not in host else None


def origin(text: str) -> Optional[Origin]:
    """What an Origin header names; None for `null` and for what no browser writes."""
    scheme, separator, rest = text.strip(" \t").lower().partition("://")
    found = place(rest)
    if not separator or found is None or not _SCHEME.fullmatch(scheme):
        return None
    return Origin(scheme, found.host, found.port or _PORTS.get(scheme))


def address(text: str) -> Optional[_IP]:
    """An IP address, without the zone of a link; an IPv4 address within IPv6 is the former."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    inner = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return inner or found


def is_loopback(host: str) -> bool:
    """Whether this name or address is this machine wherever it is used."""
    found = address(host)
    return found.is_loopback if found is not None else host == "localhost" or host.endswith(".localhost")


class Names:
    """The names that this daemon goes by. ``extra`` are those of a setting: names, addresses, ``*.example.org``.

    A page on the internet can have its own name lead to this machine (DNS rebinding), and would then read the
    answers. It cannot do so with a name of the local network, nor with an address.
    """

    def __init__(self, extra: Iterable[str]) -> None:
        own = socket.gethostname().lower()
        self._exact = {own, own.partition(".")[0]}
        self._endings = [".localhost", ".local"]
        for name in extra:
            if name.startswith("*."):
                self._endings.append(name[1:].lower())
            elif (number := address(name)) is not None:
                self._exact.add(str(number))
            elif (found := place(name)) is not None:
                self._exact.add(found.host)
        self._exact.discard("")

    def know(self, host: str, reached_at: str) -> bool:
        """Whether ``host`` is one of them; ``reached_at`` is this end of the connection."""
        found = address(host)
        if host in self._exact or (found is not None and found == address(reached_at)):
            return True
        if found is not None:
            return any(found in network for network in _PRIVATE)
        return host == "localhost" or host.endswith(tuple(self._endings))


def is_name_or_pattern(text: str) -> bool:
    """Whether a setting's value can be one of ``extra``."""
    if address(text) is not None:
        return True
    found = place(text[2:] if text.startswith("*.") else text)
    return found is not None and found.port is None and not text.endswith(":")
