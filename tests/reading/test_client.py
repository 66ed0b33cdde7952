"""Whose address stands behind a connection: only what trusted proxies have said is believed."""

from __future__ import annotations

import pytest

from gateway.reading.client import client_address, network_of

PEER = "10.0.0.1"


@pytest.mark.parametrize(
    ("forwarded_for", "hops", "address"),
    [
        (b"", 0, PEER),
        (b"192.0.2.7", 0, PEER),
        (b"", 1, PEER),
        (b"192.0.2.7", 1, "192.0.2.7"),
        (b"198.51.100.9, 192.0.2.7", 1, "192.0.2.7"),
        (b"198.51.100.9, 192.0.2.7", 2, "198.51.100.9"),
        (b"203.0.113.1, 198.51.100.9, 192.0.2.7", 2, "198.51.100.9"),
        (b"192.0.2.7", 3, "192.0.2.7"),
        (b"192.0.2.7:4711", 1, "192.0.2.7"),
        (b"[2001:db8::1]:4711", 1, "2001:db8::1"),
        (b"[2001:DB8:0::1]", 1, "2001:db8::1"),
        (b"2001:db8::1", 1, "2001:db8::1"),
        (b"::ffff:192.0.2.7", 1, "192.0.2.7"),
        (b"\t192.0.2.7 ", 1, "192.0.2.7"),
    ],
)
def test_so_many_entries_from_the_end(forwarded_for: bytes, hops: int, address: str) -> None:
    assert client_address(PEER, forwarded_for, hops) == address


@pytest.mark.parametrize(
    "entry",
    [
        b"unknown",
        b"_hidden",
        b"192.0.2.300",
        b"192.0.2.7/24",
        b"",
        b"192.0.2.07",
        b"\xd9\xa1.2.3.4",
        b"1" * 10_000,
        b"%",
    ],
)
def test_what_is_no_address_leaves_the_peer(entry: bytes) -> None:
    assert client_address(PEER, b"198.51.100.9, " + entry, 1) == PEER


def test_an_ipv6_client_is_its_network() -> None:
    assert network_of("2001:db8:1:2:3::4") == network_of("2001:db8:1:2::99") == "2001:db8:1:2::/64"
    assert network_of("::ffff:192.0.2.7") == network_of("192.0.2.7") == "192.0.2.7"
    assert network_of("?") == "?"
