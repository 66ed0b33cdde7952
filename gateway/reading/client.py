"""Whose address stands behind a connection: the peer's own, or what the trusted proxies in front say of it.

Each proxy appends the address of its own peer to `X-Forwarded-For`, so with `hops` proxies that are known to do so, the
client's is the one so many from the end. What stands further left came from the client and may be anything; it is never
looked at (CVE-2024-45410 and its like come from trusting it).

Good for limits and logs. Who asks is the business of `identity`, which believes no address but the connection's.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]{7,15}):[0-9]{1,5}")
_MAX_ADDRESS_CHARS = 64


def client_address(peer: str, forwarded_for: bytes, hops: int) -> str:
    """`peer`: the address of the connection's other end. `forwarded_for`: the field's values, comma-joined.

    Fewer entries than hops mean that a proxy was passed by: the first entry is then the farthest that a proxy has
    vouched for. What is no address is not believed, and the peer stands for its clients.
    """
    if not hops or not forwarded_for:
        return peer
    entries = forwarded_for.rsplit(b",", hops)
    return _address(entries[max(0, len(entries) - hops)].strip(b" \t")[:_MAX_ADDRESS_CHARS]) or peer


@lru_cache(maxsize=4096)
def _address(entry: bytes) -> str:
    """The address in one spelling, without a port; empty for anything else."""
    text = entry.decode("latin-1")
    if found := _WITH_PORT.fullmatch(text):
        text = found[1] or found[2]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What one client holds, for limits: an IPv4 address, or an IPv6 network of 64 bits, in which every address is the
    same client's for the asking."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
