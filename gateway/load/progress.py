"""What a run shows while it goes on: a table that is drawn anew on a terminal, else a plain line now and
then."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gateway.load.measure import Answers, Measures, Second

LINES = 20
"""About how many plain lines a run prints."""

TOP = 8


class Progress:
    """Use as a context; `show` is called with each second."""

    def __init__(self, console: Console, measures: Measures, rate: float, duration_seconds: float, quiet: bool) -> None:
        self._console = console
        self._measures = measures
        self._rate = rate
        self._duration_seconds = duration_seconds
        self._quiet = quiet
        self._every = max(1, round(duration_seconds / LINES))
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal and not quiet else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, second: Second) -> None:
        if self._live is not None:
            self._live.update(self._picture(second), refresh=True)
        elif not self._quiet and len(self._measures.seconds) % self._every == 0:
            self._console.print(line(second, self._rate), highlight=False, soft_wrap=True)

    def _picture(self, second: Second) -> Group:
        done = min(second.at_seconds, self._duration_seconds)
        head = Text(f"{done:6.1f} of {self._duration_seconds:g} s  ")
        bar = Table.grid()
        bar.add_row(head, ProgressBar(total=self._duration_seconds, completed=done, width=40))
        return Group(bar, Text(line(second, self._rate)), answers_table(self._measures.answers(), TOP))


def line(second: Second, rate: float) -> str:
    """One second in one line; rates are per second."""
    per = 1 / max(second.lasted_seconds, 0.001)
    return (
        f"{second.at_seconds:7.1f} s  asked {second.asked * per:.0f}/s of {rate:g}, "
        f"ok {second.ok * per:.0f}, refused {second.refused * per:.0f}, failed {second.failed * per:.0f}, "
        f"in flight {second.in_flight}, "
        f"p50 {second.p50_ms:.1f} p99 {second.p99_ms:.1f} p99.9 {second.p999_ms:.1f} ms"
    )


def answers_table(answers: list[Answers], most: int | None = None) -> Table:
    """Counts by operation, status and reason; with `most`, the most frequent ones."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("operation", "status", "reason"):
        table.add_column(name)
    table.add_column("count", justify="right")
    shown = answers if most is None else sorted(answers, key=lambda row: -row.count)[:most]
    for row in shown:
        style = "red" if row.status == 0 or row.status >= 500 else "yellow" if row.status >= 400 else ""
        status = str(row.status) if row.status else "none"
        table.add_row(row.operation.value, status, row.reason, f"{row.count:,}", style=style)
    return table
