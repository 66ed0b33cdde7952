"""An answer is read once: what is remembered of a head says what httptools would say again, or nothing."""

from __future__ import annotations

import itertools

import pytest

from gateway.upstream.answer import MAX_HEAD_BYTES, MAX_HEADS, Head, Heads, Reading

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EMPTY_LINE = b"\r\n\r\n"

ANSWERS = [
    OK,
    b"\r\n" + OK,
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 02\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\na\r\n\r\nb\r\n",
    b"HTTP/1.1 200 OK\r\nconnection: X-One ,close\r\nX-one: 1\r\nX-Two: 2\r\ncontent-LENGTH: 2\r\n\r\nok",
    b"HTTP/1.1 404 Not\x01Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Late: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nok",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\n" + OK,
    b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
    OK + OK,
    OK + b"x",
    OK + b"\r\n",
]


def read(*pieces: bytes) -> Reading:
    reading = Reading(1000)
    for piece in pieces:
        reading.feed(piece)
    return reading


def said(head: Head) -> tuple[object, ...]:
    return head.status, head.phrase, tuple(head.headers), head.keeps


def learnt(*answers: bytes) -> Heads:
    heads = Heads()
    for data in answers * 2:
        reading = read(data)
        if reading.done:
            heads.learn(data, reading)
    return heads


def test_what_is_remembered_is_what_would_be_read() -> None:
    heads = learnt(*ANSWERS)
    tails = [data[data.find(EMPTY_LINE) + 4 :] for data in ANSWERS] + [b"\r\n", b"o", b"HT", b"\r\n\r\n"]
    starts = [data[: data.find(EMPTY_LINE) + 4] for data in ANSWERS]
    known = 0
    for data in (start + tail for start, tail in itertools.product(starts, tails)):
        head = heads.of(data)
        if head is not None:
            known += 1
            reading = read(data)
            assert (reading.done, reading.problem, reading.behind) == (True, "", False), data
            assert (said(head), data[head.size :]) == (said(reading.head), reading.body), data
    assert known > 20, "most heads have a body of the right size among these"


@pytest.mark.parametrize("answer", ANSWERS[:1] + ANSWERS[2:3] + ANSWERS[4:7])
def test_the_plain_ones_are_remembered_when_they_come_again(answer: bytes) -> None:
    heads = Heads()
    heads.learn(answer, read(answer))
    assert heads.of(answer) is None
    heads.learn(answer, read(answer))
    assert heads.of(answer) is not None


@pytest.mark.parametrize("answer", ANSWERS[7:])
def test_what_is_not_plain_is_read_every_time(answer: bytes) -> None:
    assert learnt(answer).of(answer) is None


@pytest.mark.parametrize("other", [OK[:-1], OK + b"x", OK[:-2], b"X" + OK, OK.replace(b"200", b"201"), b"", EMPTY_LINE])
def test_more_fewer_or_other_bytes_are_not_known(other: bytes) -> None:
    heads = learnt(OK)
    assert (heads.of(OK) is not None, heads.of(other)) == (True, None)


def test_what_is_remembered_has_bounds() -> None:
    heads = learnt(*(OK.replace(b"OK", b"%d" % number) for number in range(MAX_HEADS)))
    learn_many = [OK.replace(b"OK", b"x%d" % number) for number in range(3 * MAX_HEADS)]
    for data in learn_many:
        for _ in range(2):
            heads.learn(data, read(data))
    assert len(heads._known) <= MAX_HEADS
    assert len(heads._met) <= MAX_HEADS
    assert heads.of(learn_many[-1]) is not None
    long = OK.replace(b"OK", b"x" * MAX_HEAD_BYTES)
    assert learnt(long).of(long) is None


def test_fields_of_the_connection_go_no_further() -> None:
    reading = read(
        b"HTTP/1.1 200 OK\r\nKEEP-alive: 1\r\nX-Kept: 1\r\nConnection: x-one\r\nX-One: 1\r\nConnection: , X-Two\r\n"
        b"x-two: 2\r\nX-Three: 3\r\nTrailer: a\r\nContent-Length: 0\r\n\r\n"
    )
    assert reading.head.headers == ((b"X-Kept", b"1"), (b"X-Three", b"3"))


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_reading_does_not_depend_on_the_one_before(answer: bytes) -> None:
    reading = Reading(1000)
    for before in ANSWERS:
        reading.begin()
        reading.feed(before)
        reading.end()
        reading.begin()
        for start in range(len(answer)):
            reading.feed(answer[start : start + 1])
        reading.end()
        alone = read(answer)
        alone.end()
        assert (reading.done, reading.problem == "", reading.behind) == (alone.done, alone.problem == "", alone.behind)
        if alone.done:
            assert (said(reading.head), reading.body) == (said(alone.head), alone.body)
