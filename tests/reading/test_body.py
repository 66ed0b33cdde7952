"""What a body names is what is judged and what is forwarded; everything that could be read otherwise is refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.config import DEFAULT_ROUTES, Limits, Route
from gateway.errors import BodyMalformed, ConfigurationError, HeadersMalformed, MediaTypeUnsupported
from gateway.reading.body import BodyRead, BodyReader, RouteBody, applied_ids
from gateway.reading.document import MAX_DEPTH, MAX_VALUES
from gateway.reading.headers import HeaderReader, Headers

ROUTES = {(route.operation, route.surface): route for route in DEFAULT_ROUTES}
ATTACH, REPLACE = ROUTES["attach", "live_room"], ROUTES["replace", "live_room"]
CREATE, START = ROUTES["create", ""], ROUTES["start", ""]
DETACH, FILTER = ROUTES["detach", "live_room"], ROUTES["filter", "showcase"]
READER = BodyReader(DEFAULT_ROUTES, Limits(max_batch_products=4))
JSON = (b"Content-Type", b"application/json")


def fields(*pairs: tuple[bytes, bytes]) -> Headers:
    return HeaderReader("X-Account-Id").read([(b"Host", b"h"), *pairs], (1, 1))


def read(raw: bytes | str, route: Route = ATTACH) -> BodyRead:
    return READER.read(route, raw.encode() if isinstance(raw, str) else raw, fields(JSON))


def refused(raw: bytes | str, route: Route = ATTACH) -> str:
    with pytest.raises(BodyMalformed) as error:
        read(raw, route)
    assert error.value.detail.isascii()
    assert error.value.detail.isprintable()
    return error.value.detail


@pytest.mark.parametrize(
    ("raw", "ids", "canonical"),
    [
        (b'{"product_id":"p1"}', ("p1",), b'{"product_id":"p1"}'),
        (b' {\t"product_id" :\r\n"p1" } ', ("p1",), b'{"product_id":"p1"}'),
        (b'{"product_ids":["p1"]}', ("p1",), b'{"product_ids":["p1"]}'),
        (b'{"product_ids": [ "p2" , "p1" ] }', ("p2", "p1"), b'{"product_ids":["p2","p1"]}'),
        (b'{"pr\\u006fduct_id":"\\u0070\\u0031"}', ("p1",), b'{"product_id":"p1"}'),
        (b'{"x":{"product_id":1},"product_id":"p1","y":[null,true,-1.5e3]}', ("p1",), b'{"product_id":"p1"}'),
        (b'{"product_ids":["a.b","c:d"],"session_id":"other"}', ("a.b", "c:d"), b'{"product_ids":["a.b","c:d"]}'),
    ],
)
def test_the_canonical_body_names_exactly_the_products(raw: bytes, ids: tuple[str, ...], canonical: bytes) -> None:
    assert read(raw) == BodyRead(ids, {}, canonical)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{}", "/product_id or /product_ids is missing"),
        (b"[]", "an object, not an array"),
        (b'"product_id"', "an object, not a string"),
        (b"null", "an object, not null"),
        (b"1", "an object, not a number"),
        (b'{"product_id":"a","product_ids":["b"]}', "send one of them"),
        (b'{"product_id":"a","product_ids":[]}', "send one of them"),
        (b'{"product_id":"a","product_ids":null}', "send one of them"),
        (b'{"product_ids":[]}', "/product_ids is empty"),
        (b'{"product_id":["a"]}', "/product_id must be a string, not an array"),
        (b'{"product_id":{"id":"a"}}', "not an object"),
        (b'{"product_id":null}', "not null"),
        (b'{"product_id":true}', "not a boolean"),
        (b'{"product_id":1}', "not a number"),
        (b'{"product_id":1.0}', "not a number"),
        (b'{"product_id":1e0}', "not a number"),
        (b'{"product_id":-0}', "not a number"),
        (b'{"product_ids":"a"}', "/product_ids must be an array"),
        (b'{"product_ids":["a",1]}', "/product_ids/1 must be a string"),
        (b'{"product_ids":["a",["b"]]}', "/product_ids/1 must be a string"),
        (b'{"product_id":""}', "/product_id is not an id"),
        (b'{"product_id":" 1"}', "not an id"),
        (b'{"product_id":".."}', "not an id"),
        (b'{"product_id":"a/b"}', "not an id"),
        (b'{"product_id":"a\\u0000"}', "not an id"),
        (b'{"product_id":"a\\n"}', "not an id"),
        ('{"product_id":"１"}', "not an id"),
        ('{"product_id":"١"}', "not an id"),
        ('{"product_id":"\u212a"}', "not an id"),
        (b'{"product_id":"%s"}' % (b"x" * 129), "not an id"),
        (b'{"product_ids":["a","b","c","d","e"]}', "more than 4"),
        (b'{"product_ids":["a","b","\\u0061"]}', "/product_ids/2 names the same product as /product_ids/0"),
        (b'{"product_ids":["a","a"]}', "same product"),
        (b'{"product_id":"a","product_id":"a"}', "/product_id: is there twice"),
        (b'{"product_id":"a","pr\\u006fduct_id":"b"}', "/product_id: is there twice"),
        (b'{"product_id":"a","x":[{"k":1,"k":1}]}', "/x/0/k: is there twice"),
        (b'{"product_id":"a","x":{"a/b~":{"\\u00e9":1,"\\u00e9":1}}}', "/x/a~1b~0/\\u00e9: is there twice"),
        (b'{"product_id":"a","Product_Id":"b"}', "/Product_Id is nearly product_id"),
        (b'{"PRODUCT_IDS":["a"]}', "nearly product_ids"),
        ('{"ｐroduct_id":"b"}', "nearly product_id"),
        ('{"product_id":"a","product_\u0131d":"b"}', "nearly product_id"),
        ('{"product_id":"a","product_id\u0301":"b"}', "nearly product_id"),
        ('{"product_id":"a","product\u200b_id":"b"}', "nearly product_id"),
        (b'{"product_id":"a","product_id ":"b"}', "nearly product_id"),
        (b'{"product_id":"a"}x', "character 18"),
        (b'{"product_id":"a"}{}', "one JSON document"),
        (b'{"product_id":"a",}', "one JSON document"),
        (b"{'product_id':'a'}", "one JSON document"),
        (b'{"product_id":"a"/**/}', "one JSON document"),
        (b'{"product_id":"a\tb"}', "one JSON document"),
        (b'{"product_id":"a","x":01}', "one JSON document"),
        (b" ", "one JSON document"),
        (b'{"product_id":"a","x":NaN}', "/x: NaN"),
        (b'{"product_id":"a","x":[-Infinity]}', "/x/0: -Infinity"),
        (b'{"product_id":"a","x":1e999}', "/x: is a number too large"),
        (b'{"product_id":"a","x":0.%s}' % (b"1" * 64), "too long"),
        (b'{"product_id":"a","x":%s}' % (b"9" * 5000), "/x: is an integer outside 64 bits"),
        (b'{"product_id":"a","x":18446744073709551616}', "64 bits"),
        (b'{"product_id":"a","x":"\\ud800"}', "/x: holds half"),
        (b'{"product_id":"a","x":"\\udc00\\ud800"}', "/x: holds half"),
        (b'{"product_id":"a","\\udfff":1}', "/\\udfff: holds half"),
        (b'\xef\xbb\xbf{"product_id":"a"}', "byte order mark"),
        ('{"product_id":"a"}'.encode("utf-16"), "byte order mark"),
        ('{"product_id":"a"}'.encode("utf-16-le"), "NUL"),
        ('{"product_id":"a"}'.encode("utf-32-be"), "NUL"),
        (b'{"product_id":"a","x":"\xff"}', "UTF-8 at byte 23"),
        (b'{"product_id":"a","x":"\xed\xa0\x80"}', "UTF-8"),
        (b'{"product_id":"a","x":"\xc0\x80"}', "UTF-8"),
        (b"", "no body"),
    ],
)
def test_what_can_be_read_otherwise_is_refused_with_where_and_what(raw: bytes | str, says: str) -> None:
    assert says in refused(raw)


def test_a_long_name_is_cut_in_the_detail() -> None:
    detail = refused(b'{"%s":1,"%s":2}' % (b"k" * 5000, b"k" * 5000))
    assert len(detail) < 250


@pytest.mark.parametrize("opener", ["[", '{"a":'])
def test_nesting_has_a_limit(opener: str) -> None:
    closer = "]" if opener == "[" else "}"
    inner = "0"
    for _ in range(MAX_DEPTH - 1):
        inner = opener + inner + closer
    assert read(f'{{"product_id":"a","x":{inner}}}').product_ids == ("a",)
    assert "deeper" in refused(f'{{"product_id":"a","x":{opener}{inner}{closer}}}')
    assert "deeper" in refused(opener * 10_000)


def test_brackets_in_strings_are_no_nesting() -> None:
    assert read('{"product_id":"a","x":"' + "[{" * 50 + '","y":"\\"[[["}').product_ids == ("a",)


def test_the_number_of_values_has_a_limit() -> None:
    assert "more than" in refused(f'{{"product_id":"a","x":[{",".join(["1"] * (MAX_VALUES + 1))}]}}')


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit",
    [
        b'"',
        b'\\"',
        b'"\\',
        b"[",
        b"]",
        b'{"a":',
        b"1",
        b"1,",
        b'"a":1,',
        b" ",
        b"\xcc\x81",
        b'"\xcc\x81',
        b"0.1",
        b"\\u0061",
    ],
)
@pytest.mark.parametrize(
    "frame", [b"%s", b'{"product_id":"a","x":%s}', b'{"product_id":"%s"}', b'{"product_ids":["%s"]}', b'{"%s":1}']
)
def test_a_large_hostile_body_costs_little(unit: bytes, frame: bytes) -> None:
    refused_or_read = frame % (unit * (262_144 // len(unit)))
    try:
        read(refused_or_read)
    except BodyMalformed:
        return


@pytest.mark.parametrize(
    "value",
    [
        "application/json",
        "Application/JSON",
        "application/json;charset=utf-8",
        'application/json ; charset="UTF-8"',
        "application/json;\tCharset=Utf-8",
    ],
)
def test_plain_json_is_taken(value: str) -> None:
    assert READER.of(ATTACH).read(b'{"product_id":"a"}', value, None).product_ids == ("a",)
    assert READER.of(ATTACH).read(b'{"product_id":"a"}', value, "Identity").product_ids == ("a",)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/json5",
        "application/problem+json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json;",
        "application/json;charset=utf-7",
        "application/json;charset=utf8",
        "application/json;charset=utf-16",
        "application/json;charset='utf-8'",
        "application/json;charset=utf-8;charset=utf-16",
        "application/json;charset=utf-8, text/plain",
        "application/json, application/json",
        "application/json;x=1",
        "application/j\u017fon",
        "application/json\n",
        "application/json;/json",
    ],
)
def test_another_media_type_is_refused(value: str | None) -> None:
    with pytest.raises(MediaTypeUnsupported):
        READER.of(ATTACH).read(b'{"product_id":"a"}', value, None)


@pytest.mark.parametrize("value", ["gzip", "identity, gzip", "", "identity, identity", "br", "x"])
def test_an_encoded_body_is_refused(value: str) -> None:
    with pytest.raises(MediaTypeUnsupported):
        READER.of(ATTACH).read(b'{"product_id":"a"}', "application/json", value)


def test_media_type_and_coding_are_taken_from_the_fields() -> None:
    raw = b'{"product_id":"a"}'
    for headers in (
        fields(),
        fields((b"Content_Type", b"application/json")),
        fields(JSON, (b"content-encoding", b"gzip")),
        fields((b"Content-Type", b"text/plain")),
    ):
        with pytest.raises(MediaTypeUnsupported):
            READER.read(ATTACH, raw, headers)
    for pairs in ((JSON, JSON), ((b"Content-Type", b"application/json\xff"),)):
        with pytest.raises(HeadersMalformed):
            fields(*pairs)
    assert READER.read(ATTACH, raw, fields((b"CONTENT-TYPE", b"application/json"))).canonical == raw


def test_replace_takes_exactly_one_product() -> None:
    assert read(b'{"product_id":"p2"}', REPLACE) == BodyRead(("p2",), {}, b'{"product_id":"p2"}')
    assert "missing" in refused(b'{"product_ids":["p2"]}', REPLACE)
    assert read(b'{"product_id":"p2","product_ids":["p3"]}', REPLACE).canonical == b'{"product_id":"p2"}'


def test_create_keeps_the_members_that_the_route_names() -> None:
    raw = b'{"title":"\\u76f4\\u64ad","account_id":"a1","other":1,"session_id":"s1"}'
    assert read(raw, CREATE) == BodyRead(
        (),
        {"session_id": "s1", "account_id": "a1", "title": "直播"},
        '{"session_id":"s1","account_id":"a1","title":"直播"}'.encode(),
    )
    assert read(b'{"account_id":"a1"}', CREATE).members == {"account_id": "a1"}
    assert (
        read(b'{"title":[9007199254740991,{"a":1.5}]}', CREATE).canonical == b'{"title":[9007199254740991,{"a":1.5}]}'
    )


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no body"),
        (b"[]", "an object"),
        (b'{"account_id":1}', "/account_id must be a string"),
        (b'{"session_id":null,"account_id":"a"}', "/session_id must be a string"),
        (b'{"account_id":"a b"}', "/account_id is not an id"),
        (b'{"account_id":"a","Account_ID":"b"}', "nearly account_id"),
        (b'{"account_id":"a","title":9007199254740992}', "/title is an integer"),
        (b'{"account_id":"a","title":[{"x":-9007199254740992}]}', "/title/0/x is an integer"),
    ],
)
def test_extra_members_are_read_as_strictly(raw: bytes, says: str) -> None:
    assert says in refused(raw, CREATE)


def test_start_and_end_need_no_body_and_forward_none_of_it() -> None:
    assert READER.read(START, b"", fields()) == BodyRead((), {}, b"")
    assert read(b'{"state":"live","product_ids":["p1"]}', START) == BodyRead((), {}, b"{}")
    assert "an object" in refused(b"[]", START)
    assert "twice" in refused(b'{"a":1,"a":1}', START)
    with pytest.raises(MediaTypeUnsupported):
        READER.read(START, b"a=1", fields((b"Content-Type", b"application/x-www-form-urlencoded")))


@pytest.mark.parametrize("route", [DETACH, FILTER])
def test_detach_and_filter_take_no_body(route: Route) -> None:
    assert READER.read(route, b"", fields()) == BodyRead((), {}, b"")
    assert "takes none" in refused(b"{}", route)
    assert "takes none" in refused(b" ", route)


def test_members_of_one_reading_are_nobody_elses() -> None:
    READER.read(START, b"", fields()).members["x"] = 1
    assert READER.read(START, b"", fields()).members == {}


def nested(*pointers: str, **more: Any) -> RouteBody:
    return RouteBody(Route("attach", "POST", "/x", "showcase", pointers, **more), Limits(max_batch_products=4))


def test_pointers_may_go_deep() -> None:
    body = nested("/cart/items/*/id", "/cart/one/product/id", extra_members=("note",))
    raw = b'{"note":"n","cart":{"items":[{"id":"a","count":2},{"id":"b"}],"x":1},"y":2}'
    assert body.read(raw, "application/json", None) == BodyRead(
        ("a", "b"), {"note": "n"}, b'{"cart":{"items":[{"id":"a"},{"id":"b"}]},"note":"n"}'
    )
    raw = b'{"cart":{"one":{"product":{"id":"c"}}}}'
    assert body.read(raw, "application/json", None) == BodyRead(("c",), {}, raw)
    for bad, says in (
        (b'{"cart":{"items":[{"id":"a"}],"one":{}}}', "/cart/items and /cart/one"),
        (b'{"cart":{"items":[{"id":"a"},{}]}}', "/cart/items/1/id is missing"),
        (b'{"cart":{"items":[{"id":"a","ID":"b"}]}}', "/cart/items/0/ID is nearly id"),
        (b'{"cart":{"items":{"0":{"id":"a"}}}}', "/cart/items must be an array"),
        (b'{"cart":[]}', "/cart must be an object"),
        (b'{"cart":{"items":[{"id":"a"},{"id":"a"}]}}', "/cart/items/1/id names the same product as /cart/items/0/id"),
    ):
        with pytest.raises(BodyMalformed, match=says):
            body.read(bad, "application/json", None)


def test_one_member_may_hold_one_product_or_several() -> None:
    body = nested("/p", "/p/*", "/q/*/*", "/a~1b~0/*")
    for raw, ids in (
        (b'{"p":"a"}', ("a",)),
        (b'{"p":["a","b"]}', ("a", "b")),
        (b'{"q":[["a"],["b","c"]]}', ("a", "b", "c")),
        (b'{"a/b~":["a"]}', ("a",)),
    ):
        assert body.read(raw, "application/json", None) == BodyRead(ids, {}, raw)
    with pytest.raises(BodyMalformed, match="a string or an array, not null"):
        body.read(b'{"p":null}', "application/json", None)
    with pytest.raises(BodyMalformed, match="more than 4"):
        body.read(b'{"q":[["a","b"],["c","d"],["e"]]}', "application/json", None)


def test_one_body_uses_one_pointer() -> None:
    body = nested("/items/*", "/items/*/id", "/items/*/pid")
    assert body.read(b'{"items":["a","b"]}', "application/json", None).product_ids == ("a", "b")
    for bad in (b'{"items":["a",{"id":"b"}]}', b'{"items":[{"id":"a"},{"pid":"b"}]}'):
        with pytest.raises(BodyMalformed, match="use one"):
            body.read(bad, "application/json", None)


def test_names_that_json_writes_otherwise_are_written_right() -> None:
    body = nested('/"q', "/é/*", "/")
    for raw in (b'{"\\"q":"a"}', '{"é":["a"]}'.encode(), b'{"":"a"}'):
        assert body.read(raw, "application/json", None).canonical == raw


def test_every_route_that_cannot_be_read_exactly_is_a_mistake() -> None:
    routes = (
        Route("attach", "POST", "/a", "showcase", ("/*", "/x", "", "/a/b/c/d/e/f/g/h/i", f"/{'a' * 65}")),
        Route("detach", "DELETE", "/b", "showcase", ("/x",)),
        Route("attach", "POST", "/c", "showcase", ("/x",), extra_members=("y", "x", "X", "n" * 65)),
    )
    with pytest.raises(ConfigurationError) as found:
        BodyReader(routes, Limits(), file="x.toml")
    assert [mistake.key for mistake in found.value.mistakes] == [
        "routes[0].product_ids[0]",
        "routes[0].product_ids[2]",
        "routes[0].product_ids[3]",
        "routes[0].product_ids[4]",
        "routes[1].method",
        "routes[2].extra_members[1]",
        "routes[2].extra_members[2]",
        "routes[2].extra_members[3]",
    ]


@pytest.mark.parametrize(
    "raw", [b'{"product_id":"p1"}', b'{"product_ids":["p1","p2"]}', b'{ "product_ids" : ["a","b"] }']
)
def test_both_ways_of_reading_agree(raw: bytes) -> None:
    body = READER.of(ATTACH)
    assert body._read_plain(raw) == body._read_strictly(raw)
    assert msgspec.json.encode(json.loads(raw)) == body._read_strictly(raw).canonical


@pytest.mark.parametrize(
    ("raw", "pointer", "ids"),
    [
        (b'{"attached":["a","b"]}', "/attached/*", ("a", "b")),
        (b'{"attached":[]}', "/attached/*", ()),
        (b'{"attached":[{"id":"a"},{"id":"b"}]}', "/attached/*/id", ("a", "b")),
        (b'[["a"],["b"]]', "/*/*", ("a", "b")),
        (b'{"product_id":"a","x":1}', "/product_id", ("a",)),
        (b'{"a/b":{"~":"x"}}', "/a~1b/~0", ("x",)),
        (b'{"attached":["a","b"]}', "/attached", ("a", "b")),
        (b'{"attached":[]}', "/attached", ()),
        (b'{"attached":[["a"]]}', "/attached/*", None),
        (b'{"attached":[["a"]]}', "/attached", None),
        (b'{"attached":["a",1]}', "/attached/*", None),
        (b'{"attached":["a",null]}', "/attached/*", None),
        (b'{"attached":"a"}', "/attached/*", None),
        (b'{"attached":[{"id":"a"},{}]}', "/attached/*/id", None),
        (b'{"other":[]}', "/attached/*", None),
        (b"[]", "/attached", None),
        (b"", "/attached", None),
        (b"not json", "/attached", None),
        (b'{"attached":["\xff"]}', "/attached/*", None),
        (b"[" * 100_000, "/attached/*", None),
        (b'{"attached":["a"]}', "", None),
        (b'{"attached":["a"]} x', "/attached/*", None),
    ],
)
def test_an_upstreams_answer_says_what_was_applied_or_nothing(
    raw: bytes, pointer: str, ids: tuple[str, ...] | None
) -> None:
    assert applied_ids(raw, pointer) == ids
