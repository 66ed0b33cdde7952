"""What the upstream's answer says of an operation: it was applied, it was not, or nobody knows.

Pure. The table is the contract's; what it does not name is in doubt, since only a wrong certainty can break the
promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from gateway.config import Operation, Route
from gateway.errors import GatewayError, Overloaded
from gateway.reading.body import applied_ids
from gateway.upstream.pool import NotSent, UpstreamAnswer

_NOT_ACCEPTABLE = 406
"""Says nothing of the work: frameworks find only behind it that they have no form of the answer that the client takes.
The client brings it about (`Accept`, `?format=`), and would have the slot of a product that is there given back."""


class Outcome(Enum):
    applied = "applied"
    not_applied = "not_applied"
    absent = "absent"
    in_doubt = "in_doubt"


def of_status(
    operation: Operation, status: int, already_there: Sequence[int] = (), *, slot_may_return: bool = True
) -> Outcome:
    """A detach that finds nothing (404) took nothing away. Where its slot may come back, it says besides that the
    product is absent, which the ledger may not have known: then the list is asked, since a 404 that meant something
    else must not give a slot back."""
    if 200 <= status < 300 or status in already_there:
        return Outcome.applied
    if operation == "detach" and status == 404 and slot_may_return:
        return Outcome.absent
    return Outcome.not_applied if 400 <= status < 500 and status != _NOT_ACCEPTABLE else Outcome.in_doubt


def of_error(error: GatewayError) -> Outcome:
    """Only what surely never left the gateway was not applied."""
    return Outcome.not_applied if isinstance(error, (NotSent, Overloaded)) else Outcome.in_doubt


def applied_products(route: Route, asked: Sequence[str], answer: UpstreamAnswer) -> frozenset[str] | None:
    """Which of the products asked for the upstream has now; None where its answer does not say.

    One product needs no naming: a 2xx says enough where the answer names nothing. Of a batch, the answer must say, and
    in its small part: what comes in pieces is on its way to the client already.
    """
    if answer.status in route.already_there:
        return frozenset(asked)
    named = applied_ids(answer.body, route.applied_ids) if route.applied_ids and answer.rest is None else None
    if named is None:
        return frozenset(asked) if len(asked) == 1 or not route.applied_ids else None
    return frozenset(asked).intersection(named)
