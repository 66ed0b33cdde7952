"""The outcome of a run: one struct, what is broken in it, and how it reads on a terminal. As JSON it is the
struct."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from gateway.load.evidence import Slots
from gateway.load.judge import Breach, Difference, Judgement
from gateway.load.measure import Answers, Measures, Second, Summary
from gateway.load.options import Operation, Options
from gateway.load.progress import answers_table

MAX_SHOWN: Final = 10


class Report(Struct, frozen=True):
    """`basis` says what the promise was judged by. `broken` is what makes the run fail, one sentence each."""

    label: str
    at: str
    options: Options
    basis: str
    interrupted: bool
    ran_seconds: float
    requests: int
    asked: int
    retries: int
    unfinished: int
    error_rate: float
    all: Summary
    lateness: Summary
    queued: int
    longest_wait_ms: float
    operations: dict[Operation, Summary]
    answers: list[Answers]
    seconds: list[Second]
    curves: dict[str, list[tuple[float, float]]]
    judgement: Judgement
    slots: Slots
    broken: list[str]


def build(
    options: Options,
    label: str,
    at: str,
    measures: Measures,
    judgement: Judgement,
    slots: Slots,
    *,
    basis: str,
    interrupted: bool,
) -> Report:
    """`at` is when the run began (RFC 3339)."""
    asked_for = [second for second in measures.seconds if second.asked]
    everything = measures.all.summary()
    return Report(
        label=label,
        at=at,
        options=options,
        basis=basis,
        interrupted=interrupted,
        ran_seconds=asked_for[-1].at_seconds if asked_for else 0.0,
        requests=measures.requests,
        asked=measures.asked,
        retries=measures.retries,
        unfinished=measures.unfinished,
        error_rate=round(measures.error_rate, 6),
        all=everything,
        lateness=measures.lateness.summary(),
        queued=measures.queued,
        longest_wait_ms=round(measures.longest_wait_ms, 3),
        operations={op: measures.by_operation[op].summary() for op in Operation if op in measures.by_operation},
        answers=measures.answers(),
        seconds=measures.seconds,
        curves={
            "all": measures.all.curve(),
            **{op.value: measures.by_operation[op].curve() for op in Operation if op in measures.by_operation},
        },
        judgement=judgement,
        slots=slots,
        broken=list(_broken(options, measures.error_rate, everything, judgement, slots)),
    )


def _broken(
    options: Options, error_rate: float, everything: Summary, judgement: Judgement, slots: Slots
) -> Iterator[str]:
    if judgement.over:
        yield f"the promise: {judgement.over:,} of {judgement.sessions:,} sessions went over the cap"
    if not judgement.sessions:
        yield "the promise could not be checked: no session of a restricted account was seen"
    if judgement.doubts:
        yield f"the promise could not be checked whole: {judgement.doubts[0]} ({len(judgement.doubts)} such)"
    lost = sum(1 for difference in slots.differences if difference.lost or difference.in_doubt)
    uncounted = sum(1 for difference in slots.differences if difference.uncounted)
    unclear = sum(1 for difference in slots.differences if difference.problem)
    if lost:
        yield f"slots lost: in {lost:,} of {slots.compared:,} sessions the gateway counts what was never attached"
    if uncounted:
        yield f"slots uncounted: in {uncounted:,} of {slots.compared:,} sessions the gateway misses products that count"
    if unclear:
        first = next(difference.problem for difference in slots.differences if difference.problem)
        yield f"slots could not be compared in {unclear:,} of {slots.compared:,} sessions: {first}"
    if options.max_p99_ms is not None and everything.p99_ms > options.max_p99_ms:
        yield f"p99 is {everything.p99_ms:.1f} ms, the bound {options.max_p99_ms:g} ms (--max-p99-ms)"
    if options.max_error_rate is not None and error_rate > options.max_error_rate:
        yield f"{error_rate:.2%} of requests failed, the bound is {options.max_error_rate:.2%} (--max-error-rate)"


def show(report: Report, console: Console) -> None:
    """The whole report."""
    console.print()
    console.print(answers_table(report.answers))
    console.print()
    console.print(_latency_table(report))
    console.print()
    achieved = report.asked / report.ran_seconds if report.ran_seconds else 0.0
    console.print(
        f"{report.requests:,} requests, {report.retries:,} of them retries; {achieved:,.1f} a second asked on schedule"
        f" of {report.options.rate:g}; {report.error_rate:.2%} failed; {report.unfinished:,} never ended.\n"
        f"Of the latencies, the harness' own: started late by {report.lateness.p99_ms:.1f} ms (p99),"
        f" {report.lateness.max_ms:.1f} ms at most; {report.queued:,} requests waited for a connection,"
        f" {report.longest_wait_ms:.1f} ms at most (--connections {report.options.connections}).",
        highlight=False,
        soft_wrap=True,
    )
    show_verdict(report, console)


def show_verdict(report: Report, console: Console) -> None:
    """The promise, the slots, and what is broken."""
    judgement, slots = report.judgement, report.slots
    console.print(
        f"\nThe promise, by {report.basis}: {judgement.sessions:,} sessions checked, {judgement.over:,} over the cap;"
        f" {judgement.full:,} full, at most {judgement.most_foreign:,} foreign products in one"
        f" ({judgement.entries:,} journal entries).",
        highlight=False,
        soft_wrap=True,
    )
    for breach in judgement.breaches[:MAX_SHOWN]:
        console.print(f"  over: {describe_breach(breach)}", style="red", highlight=False, markup=False, soft_wrap=True)
    if slots.note:
        console.print(f"Slots not compared: {slots.note}.", highlight=False, markup=False, soft_wrap=True)
    else:
        console.print(
            f"Slots: {slots.compared:,} sessions compared with the gateway's view after {slots.waited_seconds:g} s,"
            f" {len(slots.differences):,} differ.",
            highlight=False,
            soft_wrap=True,
        )
    for difference in slots.differences[:MAX_SHOWN]:
        console.print(
            f"  differs: {describe_difference(difference)}", style="red", highlight=False, markup=False, soft_wrap=True
        )
    if report.interrupted:
        console.print("Interrupted: the schedule was not run to its end.", style="yellow")
    for sentence in report.broken:
        console.print(f"BROKEN  {sentence}", style="bold red", highlight=False, markup=False, soft_wrap=True)
    if not report.broken:
        console.print("KEPT    the promise and every bound held", style="bold green")


def describe_breach(breach: Breach) -> str:
    where = f" at journal entry {breach.seq} ({breach.at})" if breach.seq else ""
    foreign = ", ".join(breach.foreign)
    return f"session {breach.session_id}: {len(breach.foreign)} foreign, cap {breach.cap}{where}: {foreign}"


def describe_difference(difference: Difference) -> str:
    parts = [f"{name} {', '.join(ids)}" for name, ids in _named(difference) if ids]
    return f"session {difference.session_id}: {'; '.join([*parts, *filter(None, [difference.problem])])}"


def _named(difference: Difference) -> list[tuple[str, list[str]]]:
    return [("lost", difference.lost), ("uncounted", difference.uncounted), ("in doubt", difference.in_doubt)]


def _latency_table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("latency, ms")
    for name in ("requests", "mean", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(name, justify="right")
    rows = [("all", report.all), *((op.value, summary) for op, summary in report.operations.items())]
    for name, s in rows:
        figures = (s.mean_ms, s.p50_ms, s.p90_ms, s.p99_ms, s.p999_ms, s.max_ms)
        table.add_row(name, f"{s.count:,}", *(f"{figure:,.2f}" for figure in figures))
    return table
