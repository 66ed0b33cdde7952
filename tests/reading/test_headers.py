"""A message is framed in one way, its fields are read once, and only what is meant for the upstream goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import HeadersMalformed, HeadersTooLarge
from gateway.reading.headers import HeaderReader, Headers, forwarding

HOST = (b"Host", b"shop.example:8080")
Fields = Sequence[tuple[bytes, bytes]]


def read(*fields: tuple[bytes, bytes], version: tuple[int, int] = (1, 1), host: bool = True) -> Headers:
    return HeaderReader("X-Account-Id").read([HOST, *fields] if host else fields, version)


def test_an_attach_is_understood_and_only_its_own_fields_go_on() -> None:
    headers = read(
        (b"User-Agent", b"room/1"),
        (b"accept-language", b"zh-CN"),
        (b"Accept-Language", b"en"),
        (b"X-Account-Id", b"a1"),
        (b"Authorization", b"Bearer x"),
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"20"),
        (b"Connection", b"keep-alive"),
    )
    assert headers.forward == [
        (b"User-Agent", b"room/1"),
        (b"accept-language", b"zh-CN"),
        (b"Accept-Language", b"en"),
        (b"Authorization", b"Bearer x"),
    ]
    assert headers.content == [(b"Content-Type", b"application/json")]
    assert (headers.host, headers.length, headers.chunked) == (b"shop.example:8080", 20, False)
    assert (headers.identity, headers.authorization) == ("a1", "Bearer x")
    assert (headers.content_type, headers.content_encoding) == ("application/json", None)
    assert headers.has_body
    assert not headers.expects_continue


@pytest.mark.parametrize(
    ("fields", "length", "chunked", "has_body"),
    [
        ([], None, False, False),
        ([(b"Content-Length", b"0")], 0, False, False),
        ([(b"content-length", b"007")], 7, False, True),
        ([(b"Transfer-Encoding", b"chunked")], None, True, True),
        ([(b"TRANSFER-ENCODING", b"Chunked")], None, True, True),
    ],
)
def test_the_body_has_one_length(fields: Fields, length: int | None, chunked: bool, has_body: bool) -> None:
    headers = read(*fields)
    assert (headers.length, headers.chunked, headers.has_body) == (length, chunked, has_body)


CL, TE = b"Content-Length", b"Transfer-Encoding"


@pytest.mark.parametrize(
    "fields",
    [
        [(CL, b"3"), (TE, b"chunked")],
        [(TE, b"chunked"), (CL, b"3")],
        [(CL, b"3"), (CL, b"3")],
        [(CL, b"3"), (b"content-length", b"4")],
        [(CL, b"3, 3")],
        [(CL, b"+3")],
        [(CL, b"-0")],
        [(CL, b"")],
        [(CL, b" 3")],
        [(CL, b"3 4")],
        [(CL, b"0x3")],
        [(CL, b"1_0")],
        [(CL, b"\xd9\xa3")],
        [(CL, b"9" * 19)],
        [(TE, b"chunked"), (TE, b"chunked")],
        [(TE, b"chunked, chunked")],
        [(TE, b"gzip, chunked")],
        [(TE, b"xchunked")],
        [(TE, b"identity")],
        [(TE, b"chunked;q=1")],
        [(TE, b"\x0bchunked")],
        [(TE, b"")],
        [(b"Content-Length ", b"3")],
        [(b" X", b"3")],
        [(b"", b"x")],
        [(b"X(a)", b"x")],
        [(b"X:a", b"x")],
        [(b"X\xc3\xa9", b"x")],
        [(b"X\x00", b"x")],
        [(b"N" * 257, b"x")],
        [(b"X", b"a\x00b")],
        [(b"X", b"a\r\n b")],
        [(b"X", b"a\nb: c")],
        [(b"X", b"a\rb")],
        [(b"X", b"a\x7fb")],
        [(b"X", b"a\x1bb")],
        [HOST],
        [(b"host", b"other")],
        [(b"Content-Type", b"a/b"), (b"content-type", b"a/b")],
        [(b"Content-Encoding", b"gzip"), (b"Content-Encoding", b"gzip")],
        [(b"Authorization", b"a"), (b"Authorization", b"b")],
        [(b"X-Account-Id", b"a"), (b"x-account-id", b"a")],
        [(b"Expect", b"100-continue"), (b"Expect", b"100-continue")],
        [(b"Expect", b"200-ok")],
        [(b"Expect", b"")],
        [(b"X-Account-Id", b"a\xe9")],
        [(b"Content-Type", b"application/json\xff")],
        [(b"Authorization", b"\xc2\xa0")],
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_and_closes_the_connection(fields: Fields) -> None:
    with pytest.raises(HeadersMalformed) as refused:
        read(*fields)
    assert refused.value.closes
    assert refused.value.detail.isascii()


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"a@b",
        b"a b",
        b"a/b",
        b"a,b",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"a:",
        b"a:b",
        b"a:123456",
        b"[::1",
        b"::1",
        b"\xff",
        b"a%2f",
    ],
)
def test_a_host_is_a_host(host: bytes) -> None:
    with pytest.raises(HeadersMalformed, match="Host"):
        read((b"Host", host), host=False)


@pytest.mark.parametrize("host", [b"a", b"a_b.c-d:80", b"127.0.0.1", b"[::1]:8080", b"[2001:db8::1]"])
def test_ordinary_hosts_are_read(host: bytes) -> None:
    assert read((b"Host", host), host=False).host == host


def test_http_1_0_needs_no_host_and_has_no_chunks_and_other_versions_are_refused() -> None:
    assert read(version=(1, 0), host=False).host == b""
    assert not read((b"Expect", b"100-continue"), version=(1, 0)).expects_continue
    with pytest.raises(HeadersMalformed, match="Host"):
        read(host=False)
    with pytest.raises(HeadersMalformed, match="Transfer-Encoding"):
        read((TE, b"chunked"), version=(1, 0))
    for version in ((0, 9), (2, 0), (1, 2)):
        with pytest.raises(HeadersMalformed, match="version"):
            read(version=version)


def test_number_and_size_have_limits() -> None:
    reader = HeaderReader("X-Account-Id", max_headers=3, max_header_bytes=100)
    reader.read([HOST, (b"A", b"1"), (b"B", b"2")], (1, 1))
    with pytest.raises(HeadersTooLarge):
        reader.read([HOST, (b"A", b"1"), (b"B", b"2"), (b"C", b"3")], (1, 1))
    with pytest.raises(HeadersTooLarge):
        reader.read([HOST, (b"A", b"x" * 100)], (1, 1))


def test_what_is_remembered_of_names_and_hosts_is_bounded() -> None:
    reader = HeaderReader("X-Account-Id")
    for number in range(3000):
        reader.read([(b"Host", b"h%d" % number), (b"X-%d" % number, b""), (b"Y-%0200d" % number, b"")], (1, 1))
    assert len(reader._names) == 1024
    assert len(reader._hosts) == 1024
    assert reader.read([(b"Host", b"h2999"), (b"X-2999", b"1")], (1, 1)).forward == [(b"X-2999", b"1")]


@pytest.mark.parametrize(
    "name",
    [
        *(b"Connection", b"Keep-Alive", b"Proxy-Connection", b"Proxy-Authenticate", b"Proxy-Authorization"),
        *(b"TE", b"Trailer", b"Upgrade", b"HTTP2-Settings"),
        *(b"X-HTTP-Method", b"X-HTTP-Method-Override", b"x-method-override", b"X_HTTP_Method_Override"),
        *(b"X-Original-URL", b"X-Rewrite-URL", b"X-Original-Host", b"X.Rewrite.Url", b"X-Forwarded-Prefix"),
        *(b"Forwarded", b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X_Forwarded_For", b"Via"),
        *(b"X-Account-Id", b"x-account-id", b"X_Account_Id", b"X.Account.Id", b"X-Account_Id", b"X~Account~Id"),
        *(b"Content_Length", b"Transfer_Encoding", b"Transfer.Encoding", b"Content_Type", b"Authorization_"),
        *(b"Attachgate-Decision", b"attachgate_decision"),
    ],
)
def test_hop_by_hop_fields_overrides_and_aliases_stay_here(name: bytes) -> None:
    known = name not in (b"Authorization_",)
    headers = read((name, b"value"))
    assert headers.forward == ([] if known else [(name, b"value")])
    assert headers.content == []


def test_an_alias_of_the_identity_is_not_the_identity() -> None:
    assert read((b"X_Account_Id", b"victim")).identity is None
    assert read((b"X_Account_Id", b"victim"), (b"X-Account-Id", b"a1")).identity == "a1"
    reader = HeaderReader("x_shop_account")
    headers = reader.read([HOST, (b"X_Shop_Account", b"a1"), (b"X-Shop-Account", b"victim")], (1, 1))
    assert (headers.identity, headers.forward) == ("a1", [])


def test_a_connection_field_takes_along_what_it_names_but_nothing_that_matters() -> None:
    headers = read(
        (b"Connection", b"close, X-Hop , X-Account-Id, Authorization, Content-Type"),
        (b"connection", b"Cookie,,X-Other"),
        (b"x-hop", b"1"),
        (b"X-Other", b"1"),
        (b"X-Account-Id", b"a1"),
        (b"Authorization", b"Bearer x"),
        (b"Content-Type", b"application/json"),
        (b"Cookie", b"c"),
        (b"X-Kept", b"1"),
    )
    assert headers.forward == [(b"Authorization", b"Bearer x"), (b"Cookie", b"c"), (b"X-Kept", b"1")]
    assert headers.content == [(b"Content-Type", b"application/json")]
    assert headers.identity == "a1"


def test_an_upgrade_is_asked_for_only_where_connection_says_so() -> None:
    assert read((b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"WebSocket")).upgrade == b"websocket"
    assert read((b"Upgrade", b"websocket")).upgrade == b""
    assert read((b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c")).upgrade == b"h2c"


def test_opaque_bytes_of_other_fields_are_carried() -> None:
    assert read((b"X-Title", "直播".encode())).forward == [(b"X-Title", "直播".encode())]


def test_forwarding_says_for_whom() -> None:
    assert forwarding("10.0.0.9", "https", read()) == [
        (b"X-Forwarded-For", b"10.0.0.9"),
        (b"X-Forwarded-Proto", b"https"),
        (b"Via", b"1.1 attachgate"),
        (b"X-Forwarded-Host", b"shop.example:8080"),
    ]
    headers = read(
        (b"X-Forwarded-For", b"1.2.3.4"),
        (b"X-Forwarded-For", b"5.6.7.8"),
        (b"X-Forwarded-Proto", b"gopher"),
        (b"Via", b"1.0 front"),
        version=(1, 0),
        host=False,
    )
    assert forwarding("::1", "http", headers) == [
        (b"X-Forwarded-For", b"1.2.3.4, 5.6.7.8, ::1"),
        (b"X-Forwarded-Proto", b"http"),
        (b"Via", b"1.0 front, 1.1 attachgate"),
    ]
    assert forwarding("", "http", headers)[0] == (b"X-Forwarded-For", b"1.2.3.4, 5.6.7.8, unknown")


@pytest.mark.parametrize(
    ("said", "proto", "host"),
    [
        ([(b"X-Forwarded-Proto", b"HTTPS"), (b"X-Forwarded-Host", b"live.example")], b"https", b"live.example"),
        ([(b"X-Forwarded-Proto", b"https")], b"https", b"shop.example:8080"),
        ([(b"X-Forwarded-Host", b"live.example:8443")], b"http", b"live.example:8443"),
        ([(b"X-Forwarded-Proto", b"gopher"), (b"X-Forwarded-Host", b"a@b")], b"http", b"shop.example:8080"),
        ([(b"X-Forwarded-Proto", b"https, http")], b"http", b"shop.example:8080"),
        ([(b"X-Forwarded-Proto", b"https"), (b"x-forwarded-proto", b"https")], b"http", b"shop.example:8080"),
        ([(b"X_Forwarded_Proto", b"https"), (b"X.Forwarded.Host", b"e")], b"http", b"shop.example:8080"),
        ([], b"http", b"shop.example:8080"),
    ],
)
def test_a_trusted_proxy_says_what_the_client_asked_for(
    said: list[tuple[bytes, bytes]], proto: bytes, host: bytes
) -> None:
    """And nobody else does: without one, scheme and host are those of this hop."""
    for behind, expected in ((True, (proto, host)), (False, (b"http", b"shop.example:8080"))):
        headers = HeaderReader("X-Account-Id", behind_proxies=behind).read([HOST, *said], (1, 1))
        fields = dict(forwarding("10.0.0.9", "http", headers))
        assert (fields[b"X-Forwarded-Proto"], fields[b"X-Forwarded-Host"]) == expected
        assert headers.forward == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Account-Id: a\r\nX-Account-Id: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: x\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_what_the_parser_in_front_lets_through_is_closed_here(request_bytes: bytes) -> None:
    loop = asyncio.get_running_loop()
    parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16)
    ((message, _),), _, _ = parser.feed_data(request_bytes)
    with pytest.raises(HeadersMalformed):
        HeaderReader("X-Account-Id").read(message.raw_headers, message.version)


NAMES = st.sampled_from(
    [b"Host", CL, TE, b"Connection", b"X-Account-Id", b"X_Account_Id", b"Expect", b"Cookie", b"X-A", b"Via", b"Upgrade"]
)
FIELDS = st.lists(
    st.tuples(
        st.one_of(NAMES, st.binary(max_size=8)),
        st.one_of(st.sampled_from([b"chunked", b"3", b"x-a", b"a1"]), st.binary(max_size=12)),
    ),
    max_size=8,
)


@given(FIELDS, st.sampled_from([(1, 1), (1, 0), (0, 9)]))
def test_whatever_comes_only_the_known_errors_leave_and_nothing_inexact_goes_on(
    fields: Fields, version: tuple[int, int]
) -> None:
    reader = HeaderReader("X-Account-Id", max_headers=6)
    try:
        headers = reader.read(fields, version)
    except (HeadersMalformed, HeadersTooLarge):
        return
    names = [name.lower() for name, _ in headers.forward]
    assert not {b"host", b"content-length", b"transfer-encoding", b"connection", b"x-account-id", b"x_account_id"} & {
        *names
    }
    assert headers.length is None or not headers.chunked
    assert set(headers.forward) <= set(fields)
    for name, value in headers.forward:
        assert not {*name} & {*b" \t\r\n\0:"}
        assert not {*value} & {*b"\r\n\0"}
