"""The account in a header, set by a proxy in front that has authenticated the client.

The header is worth what its sender is worth: from anybody but a trusted peer it is not only ignored but
refused, so that a mistake in the network shows at once. One value, once: a proxy that adds to what the client
sent, instead of replacing it, would let the client choose which of the two is read.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from gateway import config
from gateway.errors import IdentityInvalid, IdentityMissing

MAX_PEERS = 4096
"""Peers whose trust is remembered."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Claims(Protocol):
    """The two fields that may say who asks, as they were sent, at most once each; None where they were not."""

    @property
    def identity(self) -> str | None: ...
    @property
    def authorization(self) -> str | None: ...


class Peers:
    """Which peers are trusted. An IPv4 address is the same one whether or not it is written as IPv6
    (`::ffff:127.0.0.1`), as a listener on both families sees it."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [_as_ipv4(ipaddress.ip_network(network)) for network in networks]
        self._known: OrderedDict[str, bool] = OrderedDict()

    def trusted(self, peer_ip: str) -> bool:
        known = self._known.get(peer_ip)
        if known is None:
            known = self._known[peer_ip] = not peer_ip or self._judge(peer_ip)
            if len(self._known) > MAX_PEERS:
                self._known.popitem(last=False)
        return known

    def _judge(self, peer_ip: str) -> bool:
        try:
            address = ipaddress.ip_address(peer_ip)
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any((mapped or address) in network for network in self._networks)


def _as_ipv4(network: Network) -> Network:
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96))


class HeaderIdentity:
    """See `Identity`. Never waits."""

    def __init__(self, settings: config.Identity, id_pattern: str) -> None:
        self._header = settings.header
        self._name = settings.header.encode()
        self.own_header = self._name.lower()
        self.challenge = b'Header name="%b"' % self._name
        self._pattern = re.compile(id_pattern, re.ASCII)
        self._peers = Peers(settings.trusted_peers)

    def peek(self, peer_ip: str, claims: Claims) -> str:
        account_id = claims.identity
        if account_id is None:
            raise IdentityMissing(f"The request has no {self._header} header, so it is not known who asks.")
        if not self._peers.trusted(peer_ip):
            raise IdentityInvalid(
                f"{self._header} came from a peer that is not trusted to say who asks. Go through the proxy "
                "in front, or let the operator name the peer in `identity.trusted_peers`."
            )
        if "," in account_id:
            raise IdentityInvalid(f"{self._header} must stand once, with one account; it has several values.")
        if self._pattern.fullmatch(account_id) is None:
            raise IdentityInvalid(f"The value of {self._header} is not an account id.")
        return account_id

    async def resolve(self, peer_ip: str, claims: Claims) -> str:
        return self.peek(peer_ip, claims)

    def forwarded_header(self, account_id: str) -> tuple[bytes, bytes]:
        return self._name, account_id.encode()

    async def start(self) -> None:
        """Nothing to fetch."""

    async def reload(self) -> None:
        """Nothing to fetch."""

    async def close(self) -> None:
        """Nothing to end."""
