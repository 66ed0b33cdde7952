"""How a session comes into the ledger: with what the upstream already has, never with a fresh count.

A session may be new, or may have been made past the gateway, or Redis may have lost it: the ledger can't tell these
apart, so each of them starts from the upstream's list. What was read is believed only if nothing was written
meanwhile (`adopt`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gateway.directory import Directory
from gateway.errors import LedgerUnavailable
from gateway.ledger.steps import Ledger
from gateway.policy.model import Account, Product
from gateway.telemetry import Telemetry

ATTEMPTS = 5


class Opening:
    """`list_products` asks the upstream for a session's products, whole or an error."""

    def __init__(
        self,
        ledger: Ledger,
        directory: Directory,
        list_products: Callable[[str], Awaitable[tuple[Product, ...]]],
        telemetry: Telemetry,
    ) -> None:
        self._ledger = ledger
        self._directory = directory
        self._list_products = list_products
        self._telemetry = telemetry

    async def open(self, session_id: str, account: Account, operation: str) -> None:
        """Give the ledger what the upstream has of a session, whether the ledger knows the session or not.

        Raises `LedgerUnavailable`, or what the directory or the upstream's list failed with.
        """
        for _ in range(ATTEMPTS):
            snapshot = await self._ledger.snapshot(session_id)
            listed = await self._list_products(session_id)
            session = await self._directory.fresh_session(session_id)
            foreign = [product.product_id for product in listed if not account.owns(product)]
            version = snapshot.version if snapshot is not None else ""
            answer = await self._ledger.adopt(session_id, operation, version, session.state, foreign)
            if answer.said == "adopted" and snapshot is not None:
                self._telemetry.adopted(answer.new)
            if answer.said == "adopted" or snapshot is None:
                return
        raise LedgerUnavailable(f"Session {session_id} changes too quickly to be compared with the upstream's list.")
