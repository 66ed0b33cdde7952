"""A path is read in one way or refused; a query is carried as it came."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import AddressMalformed
from gateway.reading.address import MAX_TARGET_CHARS, read_target

ATTACH = "/live/sessions/s1/products"


@pytest.mark.parametrize(
    ("target", "segments", "canonical"),
    [
        ("/", ("",), "/"),
        (ATTACH, ("live", "sessions", "s1", "products"), ATTACH),
        ("/live/", ("live", ""), "/live/"),
        ("/%6Cive/%73%31", ("live", "s1"), "/live/s1"),
        ("/a%20b/%E5%95%86", ("a b", "商"), "/a%20b/%E5%95%86"),
        ("/a%e5%95%86", ("a商",), "/a%E5%95%86"),
        ("/a@b,c(d)", ("a@b,c(d)",), "/a@b,c(d)"),
        ("/a+b%2Bc", ("a+b+c",), "/a%2Bb%2Bc"),
        ("/.well-known/x", (".well-known", "x"), "/.well-known/x"),
        ("/...", ("...",), "/..."),
        ("/100%25", ("100%",), "/100%25"),
        ("/id:1~x_y-z.w", ("id:1~x_y-z.w",), "/id:1~x_y-z.w"),
    ],
)
def test_a_clear_path_is_decoded_and_has_one_canonical_spelling(
    target: str, segments: tuple[str, ...], canonical: str
) -> None:
    address = read_target(target, method="GET")
    assert (address.path_raw, address.query_raw) == (target, "")
    assert address.segments == segments
    assert address.canonical == canonical


@pytest.mark.parametrize("query", ["", "?", "?a=1", "?a=%zz&b=//../..;c", "??", "?/live/%2f%00"])
def test_a_query_stays_byte_for_byte(query: str) -> None:
    address = read_target("/a%62" + query, method="GET")
    assert (address.path_raw, address.query_raw) == ("/a%62", query)
    assert address.canonical == "/ab"


@pytest.mark.parametrize(
    "target",
    [
        "",
        "*",
        "live/sessions",
        "http://127.0.0.1/live/sessions/s1/products",
        "HTTP://x/",
        "//127.0.0.1/live",
        "127.0.0.1:80",
        "user@host",
        "?a",
        "/live//sessions",
        "/live/sessions//",
        "//",
        "/live/./sessions",
        "/live/../sessions",
        "/..",
        "/live/.",
        "/live/%2e/sessions",
        "/live/%2E%2e/sessions",
        "/live/.%2e/x",
        "/live%2fsessions",
        "/live%2Fsessions",
        "/live%5csessions",
        "/live%5Csessions",
        "/live\\sessions",
        "/live;x=1/sessions",
        "/live/sessions;",
        "/live%3bx/sessions",
        "/live%3Bx/sessions",
        "/live%00",
        "/live%0a",
        "/live%1f",
        "/live%7F",
        "/live%C2%85",
        "/live%3fa=1",
        "/live%3Fa=1",
        "/live%23x",
        "/live#x",
        "/live?a#x",
        "/live\x00",
        "/live\t",
        "/live /x",
        "/live\x7f",
        "/livé",
        "/live\udcff",
        "/live?a b",
        "/live?a\xe9",
        "/live?\x01",
        "/live?\udcff",
        "/live%",
        "/live%2",
        "/live%zz",
        "/live%u002f",
        "/live%ff",
        "/live%C0%AF",
        "/live%c1%9c",
        "/live%e0%80%af",
        "/live%ED%A0%80",
        "/live%F4%90%80%80",
        "/live%252fsessions",
        "/%2541ttach",
        "/%25%34%31",
        "/%25u0041",
        "/live%25252f",
        "/live%EF%BC%8Fsessions",
        "/%EF%BC%8E%EF%BC%8E/x",
        "/%E2%80%A5/x",
    ],
)
def test_what_two_servers_could_read_differently_is_refused(target: str) -> None:
    with pytest.raises(AddressMalformed) as refused:
        read_target(target, method="GET")
    assert refused.value.detail.isascii()


@pytest.mark.parametrize(
    "method", ["CONNECT", "TRACE", "trace", "Connect", "TRACK", "", "GE T", "GET\r", "G(T", "P" * 33]
)
def test_methods_that_are_not_forwarded_are_refused(method: str) -> None:
    with pytest.raises(AddressMalformed):
        read_target("/live", method=method)


@pytest.mark.parametrize("method", ["GET", "PATCH", "QUERY", "PROPFIND", "M-SEARCH"])
def test_other_methods_are_read(method: str) -> None:
    assert read_target("/live", method=method).segments == ("live",)


def test_a_target_has_a_limit() -> None:
    read_target("/" + "a" * (MAX_TARGET_CHARS - 1), method="GET")
    with pytest.raises(AddressMalformed):
        read_target("/" + "a" * MAX_TARGET_CHARS, method="GET")


def test_the_detail_says_where() -> None:
    with pytest.raises(AddressMalformed, match="encoded slash at character 5"):
        read_target("/live%2fx", method="GET")
    with pytest.raises(AddressMalformed, match="segment 2"):
        read_target("/live/../x", method="GET")


PIECES = st.sampled_from(
    [
        "/",
        "//",
        ".",
        "..",
        "%2e",
        "%2f",
        "%5c",
        "%25",
        "41",
        "%41",
        ";",
        "?",
        "#",
        "%",
        "a",
        "live",
        "é",
        "%c3%a9",
        "%00",
        "\\",
    ]
)
TARGETS = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map(lambda parts: "/" + "".join(parts)))


@given(TARGETS, st.one_of(st.just("GET"), st.text(max_size=8)))
@example("/\udc80", "GET")
def test_any_target_is_read_or_refused_and_reading_it_again_changes_nothing(target: str, method: str) -> None:
    try:
        address = read_target(target, method=method)
    except AddressMalformed:
        return
    assert address.path_raw + address.query_raw == target
    again = read_target(address.canonical, method=method)
    assert again.segments == address.segments
    assert again.canonical == address.canonical
    # Neither a second decoding nor a split after decoding finds another path.
    decoded = unquote(address.path_raw)
    assert unquote(decoded) == decoded
    assert tuple(decoded.split("/")[1:]) == address.segments
