"""Files that rotate, stay whole and have one writer."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.export.output import InUse, RotatingFile


def line(number: int, bucket: int = 1) -> bytes:
    return b'{"type":"event","id":"%d-0","bucket":%d}\n' % (number, bucket)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".jsonl")


def test_full_files_get_numbers_and_no_line_is_cut(tmp_path: Path) -> None:
    output = RotatingFile(tmp_path / "journal.jsonl", 100, 0)
    output.write([line(n) for n in range(1, 6)])
    output.write([line(6)])
    output.close()
    assert names(tmp_path) == ["journal.000001.jsonl", "journal.000002.jsonl", "journal.jsonl"]
    read = [(tmp_path / name).read_bytes() for name in names(tmp_path)]
    assert b"".join(read) == b"".join(line(n) for n in range(1, 7))
    assert all(len(data) <= 100 for data in read)


def test_a_line_longer_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    output = RotatingFile(tmp_path / "journal.jsonl", 10, 0)
    output.write([line(1), line(2)])
    output.close()
    assert (tmp_path / "journal.000001.jsonl").read_bytes() == line(1)
    assert (tmp_path / "journal.jsonl").read_bytes() == line(2)


def test_only_so_many_full_files_stay(tmp_path: Path) -> None:
    (tmp_path / "journal.000041.jsonl").write_bytes(line(0))
    (tmp_path / "other.000001.jsonl").write_bytes(line(0))
    output = RotatingFile(tmp_path / "journal.jsonl", 50, 2)
    output.write([line(n) for n in range(1, 6)])
    output.close()
    assert names(tmp_path) == ["journal.000044.jsonl", "journal.000045.jsonl", "journal.jsonl", "other.000001.jsonl"]


def test_a_line_that_a_crash_cut_short_goes(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(line(1) + b'{"type":"ev')
    output = RotatingFile(path, 1000, 0)
    output.write([line(2)])
    output.close()
    assert path.read_bytes() == line(1) + line(2)
    path.write_bytes(b"half")
    RotatingFile(path, 1000, 0).close()
    assert path.read_bytes() == b""


def test_where_its_buckets_stood_is_read_from_what_was_written(tmp_path: Path) -> None:
    output = RotatingFile(tmp_path / "journal.jsonl", 100, 0)
    output.write([line(9, 1), line(10, 1), line(3, 2), b'{"type":"gap","bucket":3}\n', b"nonsense\n"])
    assert output.positions() == {1: "10-0", 2: "3-0"}
    output.close()


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    output = RotatingFile(tmp_path / "journal.jsonl", 100, 0)
    with pytest.raises(InUse):
        RotatingFile(tmp_path / "journal.jsonl", 100, 0)
    output.close()
    RotatingFile(tmp_path / "journal.jsonl", 100, 0).close()
