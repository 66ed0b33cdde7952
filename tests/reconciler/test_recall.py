"""What the exported journal says of a session: the newest word on each product, from whichever files in any order."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config import Journal
from gateway.errors import LedgerUnavailable
from gateway.ledger.lines import gap_of, line_of
from gateway.ledger.steps import bucket_of
from gateway.reconciler import recall as module
from gateway.reconciler.recall import Recall
from tests.admission.world import until

NOW_MS = 1_790_000_000_000
_stamps = itertools.count(NOW_MS)


def event(kind: str, session: str = "s1", **fields: str) -> bytes:
    entry = {"s": session, "e": kind, "o": "op", "u": "1"} | fields
    return line_of(bucket_of(session), f"{next(_stamps)}-0", entry)


@pytest.fixture
async def recall(tmp_path: Path) -> AsyncIterator[Recall]:
    recall = Recall(Journal(str(tmp_path / "journal*.jsonl"), 1000), 3600, lambda: NOW_MS / 1000)
    yield recall
    await recall.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    path.touch()
    return path


def add(path: Path, *lines: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"".join(lines))


async def counted(recall: Recall, session: str = "s1") -> set[str]:
    return set((await recall.counted(session)).products)


async def test_what_left_while_it_counts_counts_and_what_left_before_does_not(recall: Recall, file: Path) -> None:
    add(
        file,
        event("attached", p="a b c"),
        event("refused", p="z", c="3"),
        event("replaced", p="d", x="a"),
        event("detached", p="b"),
        event("settled", p="e", r="y"),
        event("started", p=""),
        event("detached", p="c", k="c"),
        event("attached", "s2", p="other"),
    )
    assert await counted(recall) == {"c", "d", "e"}
    assert await counted(recall, "s2") == {"other"}
    assert await counted(recall, "unheard-of") == set()


async def test_what_a_settlement_did_not_see_but_may_have_come_and_gone_counts(recall: Recall, file: Path) -> None:
    add(file, event("settled", p="", r="a b", k="b"))
    assert await counted(recall) == {"b"}


async def test_one_that_came_back_counts(recall: Recall, file: Path) -> None:
    add(file, event("attached", p="a"), event("detached", p="a"), event("attached", p="a"))
    assert await counted(recall) == {"a"}


async def test_the_order_of_lines_and_their_repetition_do_not_matter(recall: Recall, tmp_path: Path) -> None:
    lines = [event("attached", p="a b"), event("detached", p="a"), event("attached", p="a"), event("detached", p="b")]
    for file, order in enumerate(itertools.permutations(lines)):
        session = f"s1-{file}"
        renamed = [line.replace(b'"s1"', b'"%b"' % session.encode()) for line in (*order, *order[:2])]
        for number, line in enumerate(renamed):
            add(tmp_path / f"journal-{number % 3}.jsonl", line)
        assert await counted(recall, session) == {"a"}, order


async def test_files_are_read_on_from_where_they_were_read_last_through_rotation(
    recall: Recall, file: Path, tmp_path: Path
) -> None:
    first, second = event("attached", p="a"), event("attached", p="b")
    add(file, first, second[:20])
    assert await counted(recall) == {"a"}
    add(file, second[20:])
    file.rename(tmp_path / "journal.000001.jsonl")
    add(file, event("attached", p="c"))
    taken: list[bytes] = []
    take = recall._index.take
    recall._index.take = lambda line, path: (taken.append(line), take(line, path))[1]  # type: ignore[method-assign]
    assert await counted(recall) == {"a", "b", "c"}
    assert first.rstrip() not in taken
    (tmp_path / "journal.000001.jsonl").unlink()
    assert await counted(recall) == {"a", "b", "c"}


async def test_a_file_that_is_rotated_while_it_is_read_is_read_all_the_same(
    recall: Recall, file: Path, tmp_path: Path
) -> None:
    add(file, event("attached", p="a"))
    files = recall._index._files
    times = 0

    def rotated() -> dict[tuple[int, int], str]:
        nonlocal times
        times += 1
        found = files()
        if times == 1:
            file.rename(tmp_path / "journal.000001.jsonl")
            add(file, event("attached", p="b"))
        return found

    recall._index._files = rotated  # type: ignore[method-assign]
    assert await counted(recall) == {"a", "b"}


async def test_another_file_with_the_inode_of_a_deleted_one_is_read_from_its_beginning(
    recall: Recall, file: Path
) -> None:
    add(file, event("attached", p="a"))
    assert await counted(recall) == {"a"}
    file.write_bytes(event("attached", p="bb") + event("attached", p="c"))
    assert await counted(recall) == {"a", "bb", "c"}


async def test_ended_and_old_ones_are_not_kept(recall: Recall, file: Path, tmp_path: Path) -> None:
    add(file, event("attached", p="a"), event("ended", p=""))
    add(file, line_of(1, f"{NOW_MS - 3_700_000}-0", {"s": "s2", "e": "attached", "o": "op", "p": "a"}))
    old = tmp_path / "journal.000001.jsonl"
    add(old, event("attached", "s3", p="a"))
    os.utime(old, (0, NOW_MS / 1000 - 3_700))
    assert [await counted(recall, session) for session in ("s1", "s2", "s3")] == [set(), set(), set()]
    assert not recall._index._sessions


async def test_a_gap_of_its_bucket_is_told(recall: Recall, file: Path) -> None:
    add(file, event("attached", p="a"), gap_of(bucket_of("s1"), NOW_MS, "trimmed", "1-0", "2-0"))
    assert (await recall.counted("s1")).gaps
    assert not (await recall.counted("s3")).gaps


async def test_a_broken_line_is_said_and_the_others_are_read(recall: Recall, file: Path) -> None:
    add(file, b'{"type":"event","id":"x"}\n', b"\n", b"nonsense\n", event("attached", p="a"))
    with capture_logs() as logs:
        assert await counted(recall) == {"a"}
    assert [line["event"] for line in logs] == ["journal_line_unreadable"]


async def test_without_a_file_nothing_is_guessed(recall: Recall) -> None:
    with capture_logs() as logs, pytest.raises(LedgerUnavailable, match=r"journal\.files"):
        await recall.counted("s1")
    assert [line["event"] for line in logs] == ["journal_unreadable"]
    with capture_logs() as logs:
        await recall.check()
    assert [line["event"] for line in logs] == ["journal_unreadable"]


async def test_more_than_fits_is_refused(recall: Recall, file: Path) -> None:
    add(file, *(event("attached", f"s{n}", p=" ".join(f"p{k}" for k in range(50))) for n in range(25)))
    with pytest.raises(LedgerUnavailable, match="max_products"):
        await recall.counted("s1")
    with pytest.raises(LedgerUnavailable, match="max_products"):
        await recall.counted("s1")


async def test_a_long_reading_is_waited_for_only_so_long(
    recall: Recall, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(file, event("attached", p="a"))
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "PIECE_PAUSE_SECONDS", 0.2)
    with pytest.raises(LedgerUnavailable, match="being read"):
        await recall.counted("s1")
    monkeypatch.setattr(module, "WAIT_SECONDS", 5.0)
    assert await counted(recall) == {"a"}


async def test_all_who_ask_at_once_share_a_reading_that_begins_after_they_asked(recall: Recall, file: Path) -> None:
    add(file, event("attached", p="a"))
    times = 0
    refresh = recall._index.refresh

    def counting() -> None:
        nonlocal times
        times += 1
        refresh()

    recall._index.refresh = counting  # type: ignore[method-assign]
    await asyncio.gather(*(recall.counted("s1") for _ in range(50)))
    assert times == 1
    await recall.counted("s1")
    assert times == 2


async def test_what_nobody_asks_for_is_forgotten(recall: Recall, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGET_SECONDS", 0.0)
    add(file, event("attached", p="a"))
    assert await counted(recall) == {"a"}
    await until(lambda: not recall._index._sessions)
    assert await counted(recall) == {"a"}
