"""How requests are read, made ready once from the configuration and swapped whole by a reload."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gateway.config import Config, Route
from gateway.errors import AddressMalformed
from gateway.reading.address import Address
from gateway.reading.headers import HeaderReader
from gateway.reading.routes import Matcher
from gateway.reading.spelling import fold_segment


class Rules(Struct, frozen=True):
    config: Config
    matcher: Matcher
    headers: HeaderReader
    account_areas: frozenset[tuple[str, ...]]

    def owner_in(self, address: Address) -> str | None:
        """The account that a path lies under, where it lies under one: `/accounts/{account_id}/…` serves only that
        account. Raises `AddressMalformed` for a path that only nearly does, since an upstream may not see the
        difference."""
        segments = address.segments
        for area in self.account_areas:
            length = len(area)
            if len(segments) > length + 1 and segments[length + 1]:
                if segments[:length] == area:
                    return segments[length]
                if tuple(map(fold_segment, segments[:length])) == tuple(map(fold_segment, area)):
                    raise AddressMalformed("The path is nearly that of an account's own: spell it exactly.")
        return None


def account_areas(routes: Sequence[Route]) -> frozenset[tuple[str, ...]]:
    """What stands before `{account_id}` in the routes' paths, in segments."""
    areas = set()
    for route in routes:
        segments = route.path.split("/")[1:]
        if "{account_id}" in segments:
            areas.add(tuple(segments[: segments.index("{account_id}")]))
    return frozenset(areas)
