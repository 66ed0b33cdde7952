"""The space of cases that a version's rules share out among themselves, each case to exactly one rule.

An official account has a shop, so its case has the shop's type and whether it is cross-border; the three
standings without restriction have no shop to speak of. Cases are told to an operator in the words of
policy.toml, so that what is missing can be pasted into it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import product

from gateway.policy.model import Account, Case, ShopType, Standing, Surface

SPACE: tuple[Case, ...] = (
    *(Case(Standing.official, *case) for case in product(ShopType, (False, True), Surface)),
    *(Case(standing, None, None, s) for standing, s in product(Standing, Surface) if standing != "official"),
)


def case_of(account: Account, surface: Surface) -> Case:
    """The one case of the space that this account, as it is now, is in on this surface."""
    standing = account.standing
    shop = account.shop
    if standing is not Standing.official or shop is None:
        return Case(standing, None, None, surface)
    return Case(standing, shop.shop_type, shop.cross_border, surface)


def select(
    standings: Collection[Standing] | None,
    shop_types: Collection[ShopType] | None,
    cross_border: bool | None,
    surfaces: Collection[Surface] | None,
) -> frozenset[Case]:
    """The cases that agree in every dimension that is given. One that says nothing of shops agrees only where
    `shop_types` and `cross_border` are not given."""
    return frozenset(
        case
        for case in SPACE
        if (standings is None or case.standing in standings)
        and (shop_types is None or case.shop_type in shop_types)
        and (cross_border is None or case.cross_border is cross_border)
        and (surfaces is None or case.surface in surfaces)
    )


def summary(cases: Collection[Case]) -> str:
    """These cases as few entries of a rule's `cases`, in the syntax of policy.toml."""
    by_shop: dict[frozenset[tuple[bool | None, Surface]], list[ShopType]] = {}
    for shop_type in ShopType:
        corner = frozenset((case.cross_border, case.surface) for case in cases if case.shop_type is shop_type)
        by_shop.setdefault(corner, []).append(shop_type)
    entries = []
    for corner, shop_types in by_shop.items():
        for border, surfaces in _by_border(corner):
            words = ['standing = ["official"]']
            words += [f"shop_types = {_list(shop_types)}"] if len(shop_types) < len(ShopType) else []
            words += [f"cross_border = {str(border).lower()}"] if border is not None else []
            entries.append(_entry(words, surfaces))
    by_surfaces: dict[frozenset[Surface], list[Standing]] = {}
    for standing in Standing:
        if standing is not Standing.official:
            surfaces = frozenset(case.surface for case in cases if case.standing is standing)
            by_surfaces.setdefault(surfaces, []).append(standing)
    entries += [_entry([f"standing = {_list(names)}"], s) for s, names in by_surfaces.items() if s]
    return ", ".join(entries)


def _by_border(
    corner: frozenset[tuple[bool | None, Surface]],
) -> list[tuple[bool | None, frozenset[Surface]]]:
    """By cross-border or not; None for both where they have the same surfaces."""
    inland = frozenset(surface for border, surface in corner if not border)
    abroad = frozenset(surface for border, surface in corner if border)
    if inland == abroad:
        return [(None, inland)] if inland else []
    return [(border, surfaces) for border, surfaces in ((False, inland), (True, abroad)) if surfaces]


def _entry(words: list[str], surfaces: frozenset[Surface]) -> str:
    if len(surfaces) < len(Surface):
        words = [*words, f"surfaces = {_list(s for s in Surface if s in surfaces)}"]
    return "{" + ", ".join(words) + "}"


def _list(names: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
