"""What a run did and found, as lines of text."""

from __future__ import annotations

from collections import Counter

from tests.chaos.run import Outcome

MAX_FINDINGS = 20
MAX_HISTORIES = 2


def lines(outcome: Outcome) -> list[str]:
    record, judged, doubts = outcome.record, outcome.judgement, outcome.doubts
    faults = {kind: count for kind, count in outcome.faults.items() if not kind.startswith("(")}
    statuses: Counter[str] = Counter()
    for (_, status, reason), count in record.answers.items():
        statuses[f"{status} {reason}".strip()] += count
    said = [
        f"seed {outcome.options.seed}, {outcome.options.store}, {outcome.lasted_seconds:g} s",
        "",
        f"operations             {record.requests} requests of {outcome.sessions} sessions: "
        + ", ".join(f"{count} {name}" for name, count in record.sent.most_common()),
        "answers                " + ", ".join(f"{count} x {name}" for name, count in statuses.most_common(12)),
        f"faults                 {sum(faults.values())}",
    ]
    said += [f"    {count:5}  {kind}" for kind, count in sorted(faults.items(), key=lambda item: -item[1])]
    said += [
        f"sessions over the cap  {judged.over} of {judged.sessions} with a cap; most in one: {judged.most_foreign}",
        f"slots lost             {outcome.lost} of {outcome.compared} sessions compared, {outcome.filled} filled",
        f"slots not proven free  {outcome.unproven} (see tests/chaos/check.py)",
        f"in doubt               {doubts.begun} operations, {doubts.settlements} settlements of attaches, "
        f"the longest {doubts.longest_seconds:g} s",
        f"left in Redis          {sum(1 for f in outcome.findings if f.what in ('left in Redis', 'not settled'))}, "
        f"settled {outcome.settled_in_seconds:g} s after the last fault",
        f"the machine            platform silent for {outcome.longest_silence_seconds:g} s at most, "
        f"harness for {outcome.longest_stall_seconds:g} s",
        "",
    ]
    if outcome.findings:
        said.append(f"VIOLATED: {len(outcome.findings)} findings. What every part said is in {outcome.folder}.")
        said += [f"  {f.what}: {f.session_id} {f.text}" for f in outcome.findings[:MAX_FINDINGS]]
        for history in list(outcome.histories.values())[:MAX_HISTORIES]:
            said += ["", history]
    else:
        said.append("The promise was kept.")
    return said
