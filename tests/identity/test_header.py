"""The account in a header: believed from trusted peers, once, and only where it is an id."""

from __future__ import annotations

import aiohttp
import pytest

from gateway import config
from gateway.errors import IdentityInvalid, IdentityMissing
from gateway.identity import Identity, build
from gateway.identity import header as module
from gateway.identity.header import HeaderIdentity, Peers
from tests.identity.claims import Claims

PATTERN = config.Limits().id_pattern


NOTHING = Claims()
A1 = Claims("a1")


def identity(**settings: object) -> HeaderIdentity:
    return HeaderIdentity(config.Identity(**settings), PATTERN)  # type: ignore[arg-type]


async def test_a_trusted_peer_says_who_asks() -> None:
    claims = Claims("a:1.b_c-2", "Bearer x")
    assert identity().peek("127.0.0.1", claims) == "a:1.b_c-2"
    assert await identity().resolve("127.0.0.1", claims) == "a:1.b_c-2"


async def test_built_from_the_configuration_it_has_nothing_to_fetch() -> None:
    async with aiohttp.ClientSession() as http:
        built: Identity = build(config.Identity(header="X-Who"), PATTERN, http)
    await built.start()
    await built.reload()
    assert built.peek("::1", A1) == "a1"
    await built.close()


def test_without_the_header_nobody_asks() -> None:
    for claims in (NOTHING, Claims(None, "Bearer a1")):
        with pytest.raises(IdentityMissing, match="X-Account-Id"):
            identity().peek("127.0.0.1", claims)


@pytest.mark.parametrize(
    "peer", ["8.8.8.8", "128.0.0.1", "::2", "::ffff:8.8.8.8", "fe80::1%eth0", "?", "localhost", "127.1"]
)
def test_a_header_from_an_untrusted_peer_is_refused(peer: str) -> None:
    with pytest.raises(IdentityInvalid, match="not trusted"):
        identity().peek(peer, A1)
    with pytest.raises(IdentityMissing):
        identity().peek(peer, NOTHING)


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0:0:0:0:0:ffff:7f00:1", ""])
def test_trusted_peers(peer: str) -> None:
    assert identity().peek(peer, A1) == "a1"


def test_a_network_written_as_ipv6_means_the_ipv4_one() -> None:
    peers = Peers(["::ffff:10.0.0.0/104", "fd00::/8"])
    assert [peers.trusted(ip) for ip in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::7")] == [True] * 3
    assert [peers.trusted(ip) for ip in ("11.1.2.3", "::10.1.2.3", "fe00::7")] == [False] * 3
    assert not Peers(["::/0"]).trusted("10.1.2.3"), "all of IPv6 is not all of IPv4"
    assert not Peers([]).trusted("127.0.0.1")


def test_what_is_known_of_peers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PEERS", 10)
    peers = Peers(["10.0.0.0/8"])
    for last in range(50):
        assert peers.trusted(f"10.0.0.{last}")
        assert not peers.trusted(f"11.0.0.{last}")
    assert len(peers._known) == 10
    assert peers.trusted("10.0.0.1")


@pytest.mark.parametrize("value", ["a1,a2", "a1, a1", "a1,"])
def test_several_values_are_refused_even_where_they_agree(value: str) -> None:
    with pytest.raises(IdentityInvalid, match="several values"):
        identity().peek("127.0.0.1", Claims(value))


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        " a1",
        "a1 ",
        "a1\n",
        "a1\x00",
        "a/1",
        "a%31",
        "a" * 129,
        "１",
        "\xff",
        "a;b",
        '"a1"',
    ],
)
def test_a_value_that_is_no_id_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(IdentityInvalid) as refused:
        identity().peek("127.0.0.1", Claims(value))
    assert refused.value.detail == "The value of X-Account-Id is not an account id."


def test_the_upstream_is_told_by_the_gateways_own_header() -> None:
    assert identity(header="X-Who").forwarded_header("a:1") == (b"X-Who", b"a:1")
    assert identity(header="X-Who").own_header == b"x-who"
