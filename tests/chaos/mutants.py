"""Planted bugs: each a change of a few words in a copy of the package, and the conditions under which it must be found.

A harness that finds nothing proves something only if it finds what is there. Every change names the text that it
replaces, which must occur exactly once: when the code moves on, `plant` says so rather than to test nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

import gateway
from tests.chaos.plan import Shape

PACKAGE: Final = Path(gateway.__file__).parent


class Mutant(Struct, frozen=True):
    """`changes`: file in the package, its text, the text instead. `finds`: the kinds of findings that give it away.
    The rest shapes the run in which it is looked for (see `plan.Shape`); where nothing else is said, the platform fails
    attaches."""

    name: str
    why: str
    changes: tuple[tuple[str, str, str], ...]
    finds: tuple[str, ...]
    seconds: float = 12.0
    sessions_a_second: float = 12.0
    faults_a_second: float = 2.0
    mix: Mapping[str, float] = {}
    modes: tuple[str, ...] = ()
    operations: tuple[str, ...] = ("attach",)


LATE = ("drop_then_apply_late",)
LOST = ("apply_then_drop", "apply_then_error", "timeout")

MUTANTS: Final = (
    Mutant(
        "one too many",
        "the cap is compared wrongly",
        (("ledger/reserve.lua", "used + needed + payments > cap then", "used + needed + payments > cap + 1 then"),),
        ("over the cap",),
        mix={"link slow": 1.0},
        faults_a_second=0.2,
    ),
    Mutant(
        "release on time-out",
        "a lost answer is taken for a no",
        (
            (
                "admission/outcome.py",
                "return Outcome.not_applied if isinstance(error, (NotSent, Overloaded)) else Outcome.in_doubt",
                "return Outcome.not_applied",
            ),
        ),
        ("over the cap",),
        modes=("apply_then_drop", "drop_then_apply_late"),
    ),
    Mutant(
        "an error means no",
        "a 5xx is taken for a no",
        (
            (
                "admission/outcome.py",
                " if 400 <= status < 500 and status != _NOT_ACCEPTABLE else Outcome.in_doubt",
                "",
            ),
        ),
        ("over the cap",),
        modes=("apply_then_error",),
    ),
    Mutant(
        "commit before the answer",
        "what was refused is committed all the same",
        (
            (
                "admission/attach.py",
                "return gate.settlements.release(session_id, decision.id, len(foreign))",
                'gate.settlements.commit(session_id, decision.id, "attached", [Step("t", p) for p in foreign])\n'
                "        return None",
            ),
        ),
        ("slot lost",),
        modes=("refuse",),
    ),
    Mutant(
        "settled too early",
        "the list is asked while the upstream may still apply",
        (("ledger/doubt.lua", "due(records, tonumber(ARGV[5]))", "due(records, 0)"),),
        ("over the cap",),
        modes=LATE,
    ),
    Mutant(
        "settled without the list",
        "what is in doubt is given back without a question",
        (
            (
                "reconciler/doubt.py",
                "listed = {product.product_id for product in await self._list_products(pending.session_id)}",
                "listed: set[str] = set()",
            ),
        ),
        ("over the cap",),
        modes=("apply_then_drop", "apply_then_error"),
        seconds=20.0,
    ),
    Mutant(
        "nothing is settled",
        "what is in doubt stays in doubt",
        (("reconciler/doubt.py", "said = await self.settle(pending)", 'said = "lost"'),),
        ("not settled", "slot lost"),
        modes=LOST,
    ),
    Mutant(
        "removed is free",
        "a product that is removed live gives its slot back",
        (
            (
                "ledger/slots.lua",
                "if seen == 'l' or seen == 'e' or field('s') ~= 'p' then",
                "if false then",
            ),
            ("ledger/slots.lua", "elseif seen ~= 'p' or field('g') or not unchanged", "elseif not unchanged"),
        ),
        ("over the cap",),
        mix={"link slow": 1.0},
        faults_a_second=0.2,
        seconds=20.0,
    ),
    Mutant(
        "nothing happens meanwhile",
        "a detach gives a slot back whatever was confirmed since it was asked",
        (
            ("ledger/slots.lua", "local unchanged = slot.generation == asked_generation", "local unchanged = true"),
            ("ledger/slots.lua", "if held_only(slot) and slot.holders == 0 then", "if slot.holders == 0 then"),
        ),
        ("over the cap", "slot not counted"),
        mix={"link slow": 1.0},
        faults_a_second=0.2,
        seconds=20.0,
    ),
    Mutant(
        "lent twice",
        "the two products of a replace are anybody's",
        (("ledger/slots.lua", "if op and op ~= operation and not found[op] then", "if false then"),),
        ("over the cap",),
        modes=LATE,
        operations=("replace",),
        seconds=30.0,
        sessions_a_second=25.0,
    ),
    Mutant(
        "a start that nobody waits for",
        "a session with a lent slot starts",
        (("ledger/start.lua", "if cap >= 0 and count('u') + lent > cap then", "if false then"),),
        ("over the cap",),
        modes=LATE,
        operations=("replace",),
        seconds=30.0,
        sessions_a_second=25.0,
    ),
    Mutant(
        "settlements end with the gateway",
        "what is not settled when a gateway stops is left to time",
        (("serve.py", "left = await self._settlements.tasks.drain(SETTLE_LIMIT_SECONDS)", "left = 0"),),
        ("settlement lost",),
        mix={"gateway restarted": 1.0},
        seconds=25.0,
    ),
)


def plant(mutant: Mutant, folder: Path) -> Path:
    """A copy of the package with the bug in it; returns what to put on the path.

    Raises `ValueError` where the code no longer has the text that the bug replaces.
    """
    root = folder / "mutant"
    shutil.copytree(PACKAGE, root / "gateway", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text, instead in mutant.changes:
        file = root / "gateway" / name
        code = file.read_text()
        if code.count(text) != 1:
            raise ValueError(f"{mutant.name}: {name} has this {code.count(text)} times, not once: {text}")
        file.write_text(code.replace(text, instead))
    return root


def shape(mutant: Mutant) -> Shape:
    return Shape(
        mutant.seconds,
        gateways=2,
        sessions_a_second=mutant.sessions_a_second,
        faults_a_second=mutant.faults_a_second,
        mix=mutant.mix or {"platform fault": 1.0},
        modes=mutant.modes,
        operations=mutant.operations,
        past=0.0,
    )
