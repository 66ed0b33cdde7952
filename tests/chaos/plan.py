"""What a chaos run does, from a seed: every session's requests and every fault, each with its time. Pure.

The same seed and the same shape give the same plan. It never looks at an outcome: a client asks for a product to be
taken out without knowing whether it is in, and starts a session without knowing whether it was created. That is what
makes a run repeatable as far as the machine's timing allows, and it reaches more interleavings than a client that
behaves well.

A session is prepared, live and, in about half of the cases, ended; many clients act in it, each through a gateway of
its own choice. Between the requests that come at any time lie bursts, in which clients meet: a race for the places, the
same product attached and taken out by several at once, replaces and detaches around the start, attaches around the end.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from msgspec import Struct

from gateway.load import world
from gateway.load.world import World
from gateway.policy.model import Account, Kind, Shop, ShopType

ACCOUNTS: Final = 200
CAP: Final = 3
CHOICES: Final = 8
QUIET_SECONDS: Final = 1.0
"""No fault in the first second, while everything begins."""

MAX_APPLY_DELAY_SECONDS: Final = 0.6
MAX_STALL_SECONDS: Final = 0.5
MAX_DELAY_SECONDS: Final = 0.15
MAX_PLATFORM_PAUSE_SECONDS: Final = 0.5
LATE_APPLY_SECONDS: Final = 3.0
"""What the gateways are told (`upstream.late_apply_seconds`). Above the four together, with room for a busy machine:
an upstream that applies later than promised breaks the promise, and no gateway could help it."""

Operation = Literal["create", "attach", "detach", "replace", "start", "start_past", "end", "view", "list"]
"""`start_past` starts the session at the platform, past every gateway."""


class Step(Struct, frozen=True):
    """One request, due `at` seconds after the run began. `products` are wanted in, `leaving` is wanted out. After no
    answer, a 429 or a 5xx it is asked again up to `retries` times. A client in a `hurry` leaves before most answers."""

    at: float
    client: int
    operation: Operation
    products: tuple[str, ...] = ()
    leaving: str = ""
    retries: int = 0
    hurry: bool = False


class SessionPlan(Struct, frozen=True):
    id: str
    account_id: str
    begins: float
    steps: tuple[Step, ...]


class Fault(Struct, frozen=True):
    """Something that goes wrong `at` so many seconds after the run began, for so many `seconds`.

    `kind` says what, `target` to whom: a gateway, the store, the platform, a link, or an operation of the platform.
    `amount` is a share, a delay in seconds or a number, as the kind needs it; `detail` a direction or a mode.
    """

    at: float
    kind: str
    target: str = ""
    seconds: float = 0.0
    amount: float = 0.0
    detail: str = ""


class Shape(Struct, frozen=True):
    """How much happens. `mix` weighs the kinds of faults, `modes` and `operations` what the platform does wrong."""

    seconds: float
    gateways: int = 3
    sessions_a_second: float = 5.0
    faults_a_second: float = 1.2
    mix: Mapping[str, float] = {}
    modes: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    past: float = 0.1
    """The share of sessions that are started past the gateways."""


MODES: Final = (
    *("error", "refuse", "timeout", "apply_then_drop", "apply_then_error", "drop_then_apply_late", "slow", "partial"),
)
OPERATIONS: Final = ("attach", "attach", "attach", "detach", "replace", "start", "end", "list", "directory", "all")

EVERYTHING: Final[Mapping[str, float]] = {
    "gateway killed": 4,
    "gateway paused": 4,
    "gateway paused past its lease": 1.5,
    "gateway restarted": 2,
    "clock stepped": 2,
    "store killed": 2,
    "store paused": 4,
    "store failed over": 2,
    "scripts forgotten": 1,
    "platform paused": 4,
    "platform fault": 26,
    "link cut": 8,
    "link refused": 5,
    "link stalled": 8,
    "link slow": 5,
    "request cut": 12,
    "answer cut": 12,
}
"""How often each kind comes, relative to the others."""


def made_up(seed: int) -> World:
    """Accounts that the notice restricts to three (N3), a few that it does not, and one that may add nothing (N1)."""
    made = world.made_up(f"c{seed}", ACCOUNTS)
    shops = {
        "free": Shop("free-shop", ShopType.flagship, cross_border=True),
        "none": Shop("none-shop", ShopType.flagship),
    }
    more = {name: Account(name, Kind.official, shop=shop) for name, shop in shops.items()}
    return World(made.accounts | more, made.products)


class Plan:
    """The plan of one run."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self.seed = seed
        self.shape = shape
        self.world = made_up(seed)
        self._offer = [product_id for product_id, _ in self.world.offer()]
        self._merchants = self.world.merchants()

    def sessions(self) -> Iterator[SessionPlan]:
        """In the order of their beginnings; the last ones begin early enough to get somewhere."""
        for number in itertools.count():
            begins = 0.2 + number / self.shape.sessions_a_second
            if begins > max(1.0, self.shape.seconds - 4.0):
                return
            yield self._session(number, begins)

    def faults(self) -> Iterator[Fault]:
        """In the order of their times. All have ended a second before the run does."""
        chance = random.Random(f"{self.seed}/faults")
        mix = self.shape.mix or EVERYTHING
        kinds, weights = list(mix), list(itertools.accumulate(mix.values()))
        at = QUIET_SECONDS
        while self.shape.faults_a_second > 0:
            at += chance.expovariate(self.shape.faults_a_second)
            if at > self.shape.seconds - 1.0:
                return
            (kind,) = chance.choices(kinds, cum_weights=weights)
            yield self._fault(chance, at, kind)

    def _fault(self, chance: random.Random, at: float, kind: str) -> Fault:
        gateway = f"gateway {chance.randrange(self.shape.gateways)}"
        link = f"{chance.choice(('client', 'upstream', 'store'))} {chance.randrange(self.shape.gateways)}"
        direction = chance.choice(("request", "answer", "both"))
        share, seconds = round(chance.random(), 3), round(chance.uniform(0.1, 1.5), 3)
        match kind:
            case "gateway paused past its lease":
                return Fault(at, kind, gateway, round(chance.uniform(6.0, 9.0), 3))
            case "gateway killed" | "gateway paused":
                return Fault(at, kind, gateway, seconds)
            case "gateway restarted":
                return Fault(at, kind, gateway)
            case "clock stepped":
                return Fault(at, kind, f"gateway {self.shape.gateways - 1}")
            case "store killed" | "store paused" | "store failed over":
                return Fault(at, kind, "store", seconds)
            case "scripts forgotten":
                return Fault(at, kind, "store")
            case "platform paused":
                return Fault(at, kind, "platform", round(share * MAX_PLATFORM_PAUSE_SECONDS, 3))
            case "platform fault":
                mode = chance.choice(self.shape.modes or MODES)
                operation = chance.choice(self.shape.operations or OPERATIONS)
                return Fault(at, kind, operation, 2 * seconds, round(0.1 + 0.9 * share, 3), mode)
            case "link stalled":
                return Fault(at, kind, link, round(0.05 + share * (MAX_STALL_SECONDS - 0.05), 3), detail=direction)
            case "link slow":
                return Fault(at, kind, link, 2 * seconds, round(share * MAX_DELAY_SECONDS, 3))
            case "request cut" | "answer cut":
                part = chance.choice((0.0, 1.0, share, share))
                return Fault(at, kind, link, 1.0, chance.randint(1, 6), str(part))
            case _:
                return Fault(at, kind, link, seconds)

    # Sessions

    def _session(self, number: int, begins: float) -> SessionPlan:
        chance = random.Random(f"{self.seed}/session/{number}")
        merchant = self._merchants[number % len(self._merchants)]
        script = _Script(chance, self._offer, merchant.own)
        script.write(chance.random() < self.shape.past)
        steps = sorted(script.steps, key=lambda step: step.at)
        moved = tuple(
            Step(round(begins + s.at, 4), s.client, s.operation, s.products, s.leaving, s.retries, s.hurry)
            for s in steps
        )
        return SessionPlan(f"c{self.seed}-s{number}", merchant.account_id, begins, moved)


class _Script:
    """Writes the steps of one session, in seconds after its beginning."""

    def __init__(self, chance: random.Random, offer: Sequence[str], own: Sequence[str]) -> None:
        self._chance = chance
        self._offer = offer
        self._own = own
        self._choices = chance.sample(offer, CHOICES)
        self._clients = chance.randint(4, 24)
        self._replaces = True
        self.steps: list[Step] = []

    def write(self, past: bool) -> None:
        """`past`: it is started past the gateways. Then nobody replaces anything in it: between the gateway's look at
        the session and the upstream's replace, such a start can't be seen by anybody."""
        chance = self._chance
        preparing, live = chance.uniform(1.0, 6.0), chance.uniform(1.5, 8.0)
        starts, ends = chance.random() < 0.85, chance.random() < 0.55
        self._replaces = not (starts and past)
        self._add(0.0, "create", retries=8)
        over = preparing + (live if starts else 0.0)
        for _ in range(int(over * chance.uniform(3.0, 6.0))):
            self._anything(chance.uniform(0.1, over))
        for _ in range(chance.choice((1, 1, 2))):
            self._race(chance.uniform(0.1, over))
        for _ in range(chance.choice((0, 1, 2))):
            self._churn(chance.uniform(0.1, preparing))
        if starts:
            self._add(preparing, "start_past" if past else "start", retries=6)
            self._around(preparing, ("replace", "detach", "attach", "attach"))
        if ends:
            self._add(over, "end", retries=6)
            self._around(over, ("attach", "detach"))
            if chance.random() < 0.2:
                self._add(over + 0.5, "create", retries=1)
                self._attach(over + 0.6, (chance.choice(self._choices),))

    def _anything(self, at: float) -> None:
        weights = {"attach": 42, "own": 8, "batch": 12, "detach": 18, "replace": 12, "view": 5, "list": 3}
        (what,) = self._chance.choices(list(weights), list(weights.values()))
        choice = self._chance.choice
        if what == "own" and self._own:
            self._attach(at, (choice(self._own),))
        elif what == "batch":
            batch = self._chance.choices((*self._own, *self._choices), k=self._chance.randint(2, 5))
            self._attach(at, tuple(dict.fromkeys(batch)))
        elif what == "detach":
            self._add(at, "detach", leaving=choice(self._choices), retries=self._tries())
        elif what == "replace":
            self._replace(at)
        elif what in ("view", "list"):
            self._add(at, what)  # type: ignore[arg-type]
        else:
            self._attach(at, (choice(self._choices),))

    def _race(self, at: float) -> None:
        """Every client at once, each with a product of its own or the favourite of all."""
        for client in range(self._clients):
            product = self._chance.choice(self._offer if self._chance.random() < 0.6 else self._choices)
            self._attach(at + self._chance.uniform(0, 0.01), (product,), client)

    def _churn(self, at: float) -> None:
        """One product put in and taken out by several within some ten milliseconds."""
        product = self._chance.choice(self._choices)
        for _ in range(self._chance.randint(4, 8)):
            at += self._chance.uniform(0, 0.03)
            if self._chance.random() < 0.55:
                self._attach(at, (product,))
            else:
                self._add(at, "detach", leaving=product, retries=self._tries())

    def _around(self, at: float, operations: Sequence[Operation]) -> None:
        for _ in range(self._chance.randint(3, 8)):
            when = max(0.05, at + self._chance.uniform(-0.15, 0.15))
            match self._chance.choice(operations):
                case "replace":
                    self._replace(when)
                case "detach":
                    self._add(when, "detach", leaving=self._chance.choice(self._choices))
                case _:
                    self._attach(when, (self._chance.choice(self._choices),))

    def _replace(self, at: float) -> None:
        old = self._chance.choice(self._choices)
        new = self._chance.choice(self._choices if self._chance.random() < 0.8 or not self._own else self._own)
        if self._replaces:
            self._add(at, "replace", (new,), old, retries=self._tries())
        else:
            self._add(at, "detach", leaving=old, retries=self._tries())

    def _attach(self, at: float, products: tuple[str, ...], client: int | None = None) -> None:
        self._add(at, "attach", products, retries=self._tries(), client=client)

    def _tries(self) -> int:
        return self._chance.choice((0, 0, 1, 3))

    def _add(
        self,
        at: float,
        operation: Operation,
        products: tuple[str, ...] = (),
        leaving: str = "",
        retries: int = 0,
        client: int | None = None,
    ) -> None:
        who = self._chance.randrange(self._clients) if client is None else client
        hurry = operation in ("attach", "detach", "replace") and self._chance.random() < 0.06
        self.steps.append(Step(at, who, operation, products, leaving, retries, hurry))
