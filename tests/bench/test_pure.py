"""The benchmark's pure parts: what wrk says, medians, mixes, and the page."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.bench import mixes, page, results, stages, wrk
from tests.bench.results import Results, Row, spread

SAID = """Running 2s test @ http://127.0.0.1:9000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.56ms    0.91ms  12.34ms   91.01%
    Req/Sec    29.61k     2.01k   31.00k    80.00%
  Latency Distribution
     50%  850.00us
     75%    1.61ms
     90%    2.50ms
     99%    1.02s
  59220 requests in 2.00s, 8.13MB read
  Socket errors: connect 0, read 1, write 2, timeout 3
  Non-2xx or 3xx responses: 35532
Requests/sec:  29610.00
Transfer/sec:      4.06MB
"""


def test_what_wrk_says_is_read_with_its_units() -> None:
    assert wrk.read(SAID) == wrk.Said(59_220, 2.0, 35_532, 6, 0.85, 1020.0)


def test_a_run_without_errors_or_refusals_says_neither() -> None:
    quiet = "\n".join(line for line in SAID.splitlines() if "errors" not in line and "Non-2xx" not in line)
    said = wrk.read(quiet)
    assert (said.refused, said.errors) == (0, 0)


def test_anything_else_is_an_error() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.read("unable to connect to 127.0.0.1:9000 Connection refused")


def test_the_middle_of_the_runs_counts_and_the_range_is_kept() -> None:
    found = spread([30.0, 10.0, 20.0, 1000.0, 15.0])
    assert (found.median, found.least, found.most, found.runs) == (20.0, 10.0, 1000.0, 5)
    with pytest.raises(ValueError, match="no run"):
        spread([])


def test_four_in_five_sessions_are_full() -> None:
    kinds = Counter(name[0] for name in mixes.session_names(1_000))
    assert kinds == {"f": 800, "o": 200}


@pytest.mark.parametrize("name", mixes.MIXES)
def test_a_mix_is_refused_as_often_as_it_says(name: str) -> None:
    """By the cap, or by the upstream, which knows x0 as not for sale."""
    sessions = mixes.session_names(500)
    refused = 0
    for request in mixes.requests(name, sessions, 4_000):
        session = request.account_id.removeprefix("a-")
        product = request.body.decode().removeprefix('{"product_id":"').removesuffix('"}')
        if product.startswith("p"):
            full = len(mixes.attached(session)) >= mixes.CAP
            assert full or product in mixes.attached(session), "nothing may fill a session for good"
            refused += product not in mixes.attached(session)
        else:
            refused += product == "x0"
    assert refused / 4_000 == pytest.approx(mixes.MIXES[name].refused, abs=0.03)


def test_the_same_seed_gives_the_same_requests() -> None:
    sessions = mixes.session_names(50)
    assert list(mixes.requests("mix", sessions, 100)) == list(mixes.requests("mix", sessions, 100))


def test_a_message_has_the_length_of_its_body() -> None:
    head, _, body = mixes.message(mixes.attach("f0000001", "p1")).partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert body == b'{"product_id":"p1"}'


def test_table_and_page_show_medians_ranges_notes_and_who_is_missing() -> None:
    row = Row("mix", "a <mix>", {}, {}, [])
    for value in (30_000.0, 10_000.0, 20_000.0):
        row.add("gateway", {"requests/s": value, "p99": 1.5})
    row.curves["gateway"] = [(0.0, 0.5), (50.0, 1.0), (99.0, 3.0)]
    row.note("nginx: 3 socket errors")
    found = Results("2026-01-01", "python -m tests.bench", "2 cores", {"nginx": "1"}, {"gateway": "all on"}, {}, [row])
    found.left_out["envoy"] = "no wheel"
    written = results.table(row)
    assert "20,000 (10,000–30,000)" in written
    assert "! nginx: 3 socket errors" in written
    shown = page.render(found)
    for expected in ("20,000 (10,000–30,000)", "a &lt;mix&gt;", "no wheel", "3 socket errors", "<polyline"):
        assert expected in shown


def test_a_sample_counts_for_its_innermost_stage() -> None:
    attach = (
        "run (asyncio/runners.py:118);Connection.serve (gateway/proxy/connection.py:9);attach (gateway/x/attach.py:50)"
    )
    folded = (
        f"{attach} 1\n{attach};Ledger.reserve (gateway/ledger/steps.py:9);Ledger._call (gateway/ledger/steps.py:8) 2\n"
    )
    folded += (
        f"{attach};reserve (gateway/admission/attach.py:9);Telemetry.ledger_took (gateway/telemetry/metrics.py:8) 1\n"
    )
    found = {stage: share for stage, share in stages.shares(folded).items() if share}
    assert found == {"metrics": 0.25, "reserve": 0.5, "what is left of attach": 0.25}
