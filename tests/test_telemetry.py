"""Operators see what happened, in numbers and in lines that nobody can forge."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import BodyMalformed, UpstreamTimeout
from gateway.policy.model import Surface
from gateway.telemetry import MAX_CHILDREN, MAX_TEXT_CHARS, Telemetry, configure_logging
from gateway.telemetry.counts import BUCKETS, Counts, Durations


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(f"attachgate_{name}", labels)


class TestMetrics:
    def test_decisions_by_surface_rule_and_verdict(self, telemetry: Telemetry, lines: Any) -> None:
        telemetry.decision(Surface.live_room, "N3", "allowed")
        telemetry.decision(Surface.live_room, "N3", "allowed")
        telemetry.refused(Surface.showcase, "N4", "foreign_not_allowed")
        assert value(telemetry, "decisions_total", surface="live_room", rule="N3", verdict="allowed") == 2
        assert value(telemetry, "decisions_total", surface="showcase", rule="N4", verdict="refused") == 1
        assert value(telemetry, "refusals_total", reason="foreign_not_allowed") == 1

    def test_a_request_without_a_surface(self, telemetry: Telemetry) -> None:
        telemetry.decision(None, "N3", "allowed")
        assert value(telemetry, "decisions_total", surface="", rule="N3", verdict="allowed") == 1

    @pytest.mark.parametrize(
        ("took", "name", "label"),
        [
            ("request_took", "request_seconds", {"operation": "attach"}),
            ("ledger_took", "ledger_seconds", {"step": "reserve"}),
            ("upstream_took", "upstream_seconds", {"operation": "attach"}),
        ],
    )
    def test_durations(self, telemetry: Telemetry, took: str, name: str, label: dict[str, str]) -> None:
        observe: Callable[[str, float], None] = getattr(telemetry, took)
        observe(next(iter(label.values())), 0.0015)
        assert value(telemetry, f"{name}_count", **label) == 1
        assert value(telemetry, f"{name}_sum", **label) == 0.0015
        assert value(telemetry, f"{name}_bucket", **label, le="0.001") == 0
        assert value(telemetry, f"{name}_bucket", **label, le="0.002") == 1
        assert value(telemetry, f"{name}_bucket", **label, le="0.0005") == 0
        assert value(telemetry, f"{name}_bucket", **label, le="10.0") == 1

    def test_what_has_not_happened_yet_is_there_as_zero(self, telemetry: Telemetry) -> None:
        assert value(telemetry, "request_seconds_count", operation="attach") == 0
        assert value(telemetry, "in_doubt") == 0
        assert value(telemetry, "adopted_total") == 0

    def test_the_rest(self, telemetry: Telemetry) -> None:
        telemetry.in_doubt(3)
        telemetry.settled("committed")
        telemetry.adopted()
        telemetry.adopted(2)
        telemetry.error("client_gone")
        telemetry.watch_connections(lambda: 7)
        assert value(telemetry, "in_doubt") == 3
        assert value(telemetry, "settled_total", outcome="committed") == 1
        assert value(telemetry, "adopted_total") == 3
        assert value(telemetry, "errors_total", reason="client_gone") == 1
        assert value(telemetry, "connections") == 7

    def test_the_directorys_own_counters_are_read_at_each_scrape(self, telemetry: Telemetry) -> None:
        @dataclass
        class Records:
            hits: int = 0
            misses: int = 0
            stale: int = 0
            negative: int = 0
            errors: int = 0

        accounts = Records(hits=5)
        telemetry.watch_directory({"account": accounts, "product": Records(errors=2)})
        assert value(telemetry, "directory_total", kind="account", result="hits") == 5
        accounts.hits += 1
        assert value(telemetry, "directory_total", kind="account", result="hits") == 6
        assert value(telemetry, "directory_total", kind="product", result="errors") == 2

    def test_one_policy_version_is_in_force_and_the_next_begins_by_itself(self, telemetry: Telemetry) -> None:
        versions = ["2026-07"]
        telemetry.watch_policy(lambda: versions[-1])
        assert value(telemetry, "policy_info", version="2026-07") == 1
        versions.append("2026-08")
        assert value(telemetry, "policy_info", version="2026-07") is None
        assert value(telemetry, "policy_info", version="2026-08") == 1
        assert telemetry.policy_version == "2026-08"

    def test_labels_are_bounded(self, telemetry: Telemetry) -> None:
        for number in range(MAX_CHILDREN + 50):
            telemetry.error(f"reason {number}")
        telemetry.error("reason 0")
        assert value(telemetry, "errors_total", reason="reason 0") == 2
        assert value(telemetry, "errors_total", reason="other") == 50
        assert telemetry.exposition()[0].count(b"attachgate_errors_total{") == MAX_CHILDREN + 1

    def test_labels_of_durations_are_bounded(self, telemetry: Telemetry) -> None:
        series = b"attachgate_ledger_seconds_count{"
        known = telemetry.exposition()[0].count(series)
        for number in range(MAX_CHILDREN):
            telemetry.ledger_took(f"step {number}", 0.1)
        telemetry.ledger_took("reserve", 0.1)
        assert value(telemetry, "ledger_seconds_count", step="reserve") == 1
        assert value(telemetry, "ledger_seconds_count", step="other") == known
        assert telemetry.exposition()[0].count(series) == MAX_CHILDREN + 1

    @pytest.mark.parametrize(
        ("accept", "content_type"),
        [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
    )
    def test_exposition(self, telemetry: Telemetry, accept: str, content_type: str) -> None:
        body, found = telemetry.exposition(accept)
        assert found.startswith(content_type)
        assert b"attachgate_build_info{" in body
        assert b"process_open_fds" in body

    def test_the_exposition_can_be_read(self, telemetry: Telemetry) -> None:
        telemetry.decision(Surface.live_room, 'N"3\n', "allowed")
        body = telemetry.exposition()[0].decode()
        names = {family.name for family in text_string_to_metric_families(body)}
        assert {"attachgate_decisions", "attachgate_request_seconds", "attachgate_directory"} <= names


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
class TestPlainNumbersReadAsTheLibrarysOwn:
    """`theirs` is fed the same as `ours`; one clock stands still, since each series says when it was made."""

    @pytest.fixture(autouse=True)
    def _one_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.time", lambda: 1_780_000_000.25)

    @pytest.fixture
    def ours(self) -> CollectorRegistry:
        return CollectorRegistry(auto_describe=True)

    @pytest.fixture
    def theirs(self) -> CollectorRegistry:
        return CollectorRegistry(auto_describe=True)

    def same(self, ours: CollectorRegistry, theirs: CollectorRegistry, accept: str) -> None:
        encode, _ = choose_encoder(accept)
        assert list(ours.collect()) == list(theirs.collect())
        assert encode(ours) == encode(theirs)

    def test_a_counter(self, ours: CollectorRegistry, theirs: CollectorRegistry, accept: str) -> None:
        counts = Counts("seen_total", "What was\nseen", "surface", "rule")
        ours.register(counts)
        counter = Counter("seen_total", "What was\nseen", ("surface", "rule"), registry=theirs)
        self.same(ours, theirs, accept)
        for surface, rule in ((Surface.showcase, "N4"), ("", 'N"3\n\\'), (Surface.showcase, "N4"), ("showcase", "N4")):
            counts.add((surface, rule))
            counter.labels(surface, rule).inc()
        counts.add(("", "none yet"), 0)
        counter.labels("", "none yet")
        self.same(ours, theirs, accept)

    def test_a_histogram(self, ours: CollectorRegistry, theirs: CollectorRegistry, accept: str) -> None:
        durations = Durations("took_seconds", "How long", "step", ("reserve", "commit"))
        ours.register(durations)
        histogram = Histogram("took_seconds", "How long", ("step",), buckets=BUCKETS, registry=theirs)
        for step in ("reserve", "commit"):
            histogram.labels(step)
        self.same(ours, theirs, accept)
        for seconds in (-0.1, 0.0, *BUCKETS, *(bound * 1.001 for bound in BUCKETS), 0.3, 1e9):
            for step in ("commit", "new"):
                durations.observe(step, seconds)
                histogram.labels(step).observe(seconds)
        self.same(ours, theirs, accept)


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Logging as configured for a gateway; returns the events logged so far."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    configure_logging("info", out)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class TestLogs:
    def test_one_event_is_one_json_object(self, lines: Any) -> None:
        structlog.get_logger("x").warning("happened", count=3, share=0.5, known=True, nothing=None)
        [event] = lines()
        assert event.pop("timestamp").endswith("Z")
        assert event == {
            "event": "happened",
            "level": "warning",
            "count": 3,
            "share": 0.5,
            "known": True,
            "nothing": None,
        }

    def test_below_the_level_nothing_is_logged(self, lines: Any) -> None:
        structlog.get_logger().debug("detail")
        logging.getLogger("aiohttp").debug("detail")
        assert lines() == []

    def test_an_unknown_level_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no log level"):
            configure_logging("loud")

    @pytest.mark.parametrize(
        "injected", ['\n{"event":"forged"}', "\r\nx", "\x85x", "\u2028x", "\x00\x1b[31m", "\ud800"]
    )
    def test_no_value_can_begin_a_line(self, lines: Any, injected: str) -> None:
        structlog.get_logger().info("asked", session_id="s1" + injected, more=["a" + injected], by={"k": injected})
        [event] = lines()
        assert event["session_id"] == "s1" + injected
        assert event["more"] == ["a" + injected]
        assert event["by"] == {"k": injected}

    def test_text_is_bounded(self, lines: Any) -> None:
        structlog.get_logger().info("asked", path="x" * 10_000, ids=["y" * 10_000] * 1000, odd=b"z" * 10_000)
        [event] = lines()
        assert event["path"] == "x" * (MAX_TEXT_CHARS - 3) + "..."
        assert len(event["ids"]) == 64
        assert {len(text) for text in event["ids"]} == {MAX_TEXT_CHARS}
        assert len(event["odd"]) == MAX_TEXT_CHARS

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("authorization", "anything"),
            ("access_token", "anything"),
            ("Set-Cookie", "anything"),
            ("url", "redis://user:anything@host:6379/0"),
            ("detail", "sent Authorization: Bearer anything-at-all.x"),
            ("detail", "token eyJhbGciOi.anything.sig"),
        ],
    )
    def test_secrets_are_left_out(self, lines: Any, key: str, text: str) -> None:
        structlog.get_logger().info("asked", **{key: text, "fields": {key: text}})
        [event] = lines()
        assert "anything" not in json.dumps(event)
        assert "[hidden]" in event[key]

    def test_tracebacks_are_kept_in_one_line(self, lines: Any) -> None:
        def fail(depth: int) -> None:
            if depth == 0:
                raise RuntimeError("redis://user:pass@host broke")
            fail(depth - 1)

        try:
            fail(200)
        except RuntimeError:
            structlog.get_logger().exception("failed")
        [event] = lines()
        assert event["exception"].endswith("RuntimeError: redis://[hidden]@host broke")
        assert len(event["exception"]) < 8300

    def test_libraries_log_in_the_same_form(self, lines: Any) -> None:
        try:
            raise ValueError("odd")
        except ValueError:
            logging.getLogger("aiohttp.server").exception("Error from %s", "1.2.3.4\nforged")
        [event] = lines()
        assert event["event"] == "Error from 1.2.3.4\nforged"
        assert event["level"] == "error"
        assert event["exception"].endswith("ValueError: odd")
        assert "timestamp" in event

    def test_a_failure_says_whose_fault_it_is(self, telemetry: Telemetry, lines: Any) -> None:
        telemetry.failed(BodyMalformed("No JSON."), "d1")
        telemetry.failed(UpstreamTimeout("Nothing came."), "d2", "s1")
        clients, ours = lines()
        assert (clients["level"], clients["reason"], clients["status"]) == ("info", "body_malformed", 400)
        assert (ours["level"], ours["decision_id"], ours["session_id"]) == ("warning", "d2", "s1")
        assert value(telemetry, "errors_total", reason="upstream_timeout") == 1
