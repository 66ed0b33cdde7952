"""What the policy speaks of: accounts, shops, products, sessions, rules, versions, verdicts.

Accounts, products and sessions have the form of the directory's records, so that msgspec decodes an answer
straight into them. Times are seconds since the epoch.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Literal

import msgspec


class Kind(StrEnum):
    official = "official"
    creator = "creator"


class ShopType(StrEnum):
    mall = "mall"
    official_flagship = "official_flagship"
    flagship = "flagship"
    exclusive = "exclusive"
    franchise = "franchise"
    individual = "individual"
    enterprise = "enterprise"


class Surface(StrEnum):
    live_room = "live_room"
    showcase = "showcase"
    short_video = "short_video"


class Standing(StrEnum):
    """What an account is to the rules. `official` may be restricted; the other three are not (N10, N11, N14)."""

    official = "official"
    pure_creator = "pure_creator"
    unbound = "unbound"
    creator = "creator"


class Shop(msgspec.Struct, frozen=True, gc=False):
    shop_id: str
    shop_type: ShopType
    cross_border: bool = False
    status: Literal["open", "closed"] = "open"


class Account(msgspec.Struct, frozen=True, gc=False):
    account_id: str
    kind: Kind
    pure_creator: bool = False
    shop: Shop | None = None

    @property
    def standing(self) -> Standing:
        if self.kind is Kind.creator:
            return Standing.creator
        if self.shop is None or self.shop.status == "closed":
            return Standing.unbound
        return Standing.pure_creator if self.pure_creator else Standing.official

    @property
    def recorded(self) -> bool:
        """Whether foreign products of this account go through the ledger, restricted today or not."""
        return self.kind is Kind.official and self.shop is not None and self.shop.status == "open"

    def owns(self, product: Product) -> bool:
        return self.shop is not None and self.shop.status == "open" and product.shop_id == self.shop.shop_id


class Product(msgspec.Struct, frozen=True, gc=False):
    product_id: str
    shop_id: str


class SessionState(StrEnum):
    preparing = "preparing"
    live = "live"
    ended = "ended"


class Session(msgspec.Struct, frozen=True, gc=False):
    session_id: str
    account_id: str
    state: SessionState


class Case(msgspec.Struct, frozen=True, order=True):
    """One point of the space that a version's rules must cover exactly once. `shop_type` and `cross_border` are
    None for standings that have no shop to speak of (`unbound`, `creator`, `pure_creator`)."""

    standing: Standing
    shop_type: ShopType | None
    cross_border: bool | None
    surface: Surface


class Step(msgspec.Struct, frozen=True):
    """From `at` on, `percent` of the official accounts are reached (N12)."""

    at: float
    percent: float


class Rule(msgspec.Struct, frozen=True):
    """`cap` is the number of distinct foreign products, None for no limit. `message` maps a language tag
    (`zh-CN`, `zh-Hant`, `en`) to the text that the merchant reads. An empty roll-out reaches everybody."""

    id: str
    cap: int | None
    message: dict[str, str]
    rollout: tuple[Step, ...] = ()


class Version(msgspec.Struct, frozen=True):
    id: str
    effective_from: float
    salt: str
    cases: dict[Case, Rule]


class Policy(msgspec.Struct, frozen=True, dict=True):
    """Versions in the order of `effective_from`, oldest first."""

    versions: tuple[Version, ...]

    @cached_property
    def changes(self) -> tuple[float, ...]:
        """Every time at which a verdict may change by itself: a version takes effect, or a roll-out takes a step."""
        times = {version.effective_from for version in self.versions}
        for version in self.versions:
            for rule in version.cases.values():
                times.update(step.at for step in rule.rollout if step.at > version.effective_from)
        return tuple(sorted(times))


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What the policy says of an account's foreign products on one surface at one time.

    `cap` None: no limit. `rule` is the matched rule's notice id (`N3`); `reached` is False where the rule would
    restrict the account but its roll-out has not come to it yet (N12), and `cap` is then None.
    """

    cap: int | None
    rule: str
    policy_version: str
    reached: bool
    standing: Standing
    message: dict[str, str]
