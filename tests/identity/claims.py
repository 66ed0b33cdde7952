"""What a request says of who asks, as an identity is told it."""

from __future__ import annotations

from typing import NamedTuple


class Claims(NamedTuple):
    identity: str | None = None
    authorization: str | None = None
