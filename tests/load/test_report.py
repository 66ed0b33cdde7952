"""What is measured is what is shown."""

from __future__ import annotations

import io
import math

import msgspec
import pytest
from rich.console import Console

from gateway.load import page, plots, report
from gateway.load.evidence import Slots
from gateway.load.judge import Breach, Difference, Judgement
from gateway.load.measure import LONGEST_US, Latencies, Measures, Second
from gateway.load.options import Operation, Options
from gateway.load.progress import Progress
from gateway.load.report import Report

from .conftest import options

ASKED = options("--target", "http://127.0.0.1:1", "--platform", "http://127.0.0.1:2")
KEPT = Judgement(5, 40, 0, [], 3, 2)
SAME = Slots(5, [], 0.2)


def measured() -> Measures:
    measures = Measures()
    for at in range(3):
        for n in range(100):
            measures.started(0.001, retry=n == 99)
            measures.answered(Operation.attach_foreign, 200 if n % 2 else 403, "" if n % 2 else "<b>", 0.001 * (n + 1))
        measures.close_second(at + 1.0, 4)
    return measures


def built(judgement: Judgement = KEPT, slots: Slots = SAME, options: Options = ASKED) -> Report:
    return report.build(options, "run", "now", measured(), judgement, slots, basis="a journal", interrupted=False)


def test_percentiles_are_those_of_the_records() -> None:
    latencies = Latencies()
    for n in range(1, 1001):
        latencies.record(n * 1000)
    summary = latencies.summary()
    assert summary.count == 1000
    assert summary.mean_ms == pytest.approx(500.5)
    assert [summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.p999_ms, summary.max_ms] == pytest.approx(
        [500, 900, 990, 999, 1000], rel=0.002
    )
    curve = latencies.curve()
    assert curve[0][0] == 0
    assert curve == sorted(curve)
    assert curve[-1][0] <= 99.9
    assert Latencies().summary().max_ms == 0


def test_what_is_beyond_the_longest_counts_as_the_longest() -> None:
    measures = Measures()
    measures.answered(Operation.list, 0, "timeout", 1e9)
    measures.answered(Operation.list, 0, "timeout", 0.0)
    assert measures.all.count == 2
    assert measures.all.max_ms == pytest.approx(LONGEST_US / 1000, rel=0.001)


@pytest.mark.parametrize(
    ("judgement", "slots", "words", "says"),
    [
        (KEPT, SAME, [], []),
        (msgspec.structs.replace(KEPT, over=2), SAME, [], ["the promise: 2 of 5 sessions"]),
        (msgspec.structs.replace(KEPT, sessions=0), SAME, [], ["could not be checked"]),
        (msgspec.structs.replace(KEPT, doubts=["a hole"]), SAME, [], ["checked whole: a hole"]),
        (KEPT, Slots(5, [Difference("s", ["f1"], ["f2"], [])], 9), [], ["slots lost: in 1", "slots uncounted: in 1"]),
        (KEPT, Slots(5, [Difference("s", [], [], ["f2"])], 9), [], ["slots lost: in 1"]),
        (KEPT, Slots(5, [Difference("s", [], [], [], "status 503")], 9), [], ["1 of 5 sessions: status 503"]),
        (KEPT, Slots(0, [], 0, "no view"), [], []),
        (KEPT, SAME, ["--max-p99-ms", "50"], ["p99 is 99.0 ms, the bound 50 ms"]),
        (KEPT, SAME, ["--max-p99-ms", "100", "--max-error-rate", "0"], []),
    ],
)
def test_what_is_broken_is_named(judgement: Judgement, slots: Slots, words: list[str], says: list[str]) -> None:
    asked = options("--target", "http://127.0.0.1:1", "--platform", "http://127.0.0.1:2", *words)
    broken = built(judgement, slots, asked).broken
    assert len(broken) == len(says)
    assert all(word in sentence for word, sentence in zip(says, broken, strict=True))


def text_of(outcome: Report) -> str:
    out = io.StringIO()
    report.show(outcome, Console(file=out, width=160))
    return out.getvalue()


def test_the_terminal_shows_counts_percentiles_and_the_verdict() -> None:
    text = text_of(built())
    assert "attach_foreign  403     <b>" in text
    assert "300 requests, 3 of them retries" in text
    assert "5 sessions checked, 0 over the cap" in text
    assert "KEPT" in text
    breach = Breach("s[/b]1", "a", 3, ["f1", "f2", "f3", "f4"], "noon", 17)
    difference = Difference("s2", ["f9"], [], ["f8"])
    text = text_of(built(msgspec.structs.replace(KEPT, over=1, breaches=[breach]), Slots(5, [difference], 9)))
    assert "session s[/b]1: 4 foreign, cap 3 at journal entry 17 (noon): f1, f2, f3, f4" in text
    assert "session s2: lost f9; in doubt f8" in text
    assert "BROKEN" in text


def test_the_report_survives_json() -> None:
    outcome = built()
    assert msgspec.json.decode(msgspec.json.encode(outcome), type=Report) == outcome


def test_the_page_stands_alone_and_escapes_what_it_shows() -> None:
    breach = Breach("<script>", "a", 3, ["f1"])
    html = page.render(built(msgspec.structs.replace(KEPT, over=1, breaches=[breach])))
    assert "<script" not in html
    assert "&lt;b&gt;" in html
    assert html.count("<svg") == html.count("</svg>") == 3
    assert "url(" not in html
    assert "verdict broken" in html


def test_a_run_without_an_answer_has_a_page_too() -> None:
    empty = report.build(ASKED, "run", "now", Measures(), KEPT, SAME, basis="x", interrupted=True)
    assert "Interrupted" in page.render(empty)
    assert "Interrupted" in text_of(empty)


def second(at: float, **counts: float) -> Second:
    plain = dict.fromkeys(Second.__struct_fields__, 0) | {"at_seconds": at, "lasted_seconds": 1.0}
    return Second(**(plain | counts))


def test_long_runs_are_thinned_by_the_worst() -> None:
    rows = [second(n + 1.0, ok=2, p99_ms=n % 10) for n in range(1000)]
    thinned = page.thin(rows)
    assert len(thinned) <= page.MAX_POINTS
    assert sum(row.ok for row in thinned) == 2000
    assert thinned[-1].at_seconds == 1000
    assert max(row.p99_ms for row in thinned[:5]) == 9
    assert page.thin([]) == []


@pytest.mark.parametrize("most", [0, 0.07, 1, 3, 9.9, 10, 120, 3600, 86400])
def test_linear_axes_have_a_few_round_ticks(most: float) -> None:
    axis = plots.linear("x", most)
    assert 2 <= len(axis.ticks) <= 11
    assert all(-1e-9 <= axis.to(value) <= 1 + 1e-9 for value, _ in axis.ticks)


def test_other_axes() -> None:
    axis = plots.logarithmic("y", 0.3, 240)
    assert [text for _, text in axis.ticks] == ["0.1", "1", "10", "100", "1000"]
    assert [round(axis.to(value), 3) for value, _ in axis.ticks] == [0, 0.25, 0.5, 0.75, 1]
    axis = plots.nines("percentile", 99.9)
    assert [text for _, text in axis.ticks] == ["0", "50", "90", "99", "99.9"]
    assert axis.to(99) == pytest.approx(2 / 3)
    assert math.isfinite(axis.to(100))


def test_progress_on_a_terminal_and_as_plain_lines() -> None:
    for terminal, quiet, expected in ((True, False, "in flight 4"), (False, False, "in flight 4"), (False, True, "")):
        out = io.StringIO()
        shown = Console(file=out, width=160, force_terminal=terminal)
        measures = measured()
        with Progress(shown, measures, 100, 3, quiet) as progress:
            progress.show(measures.seconds[-1])
        assert expected in out.getvalue()
        assert bool(expected) == bool(out.getvalue())
