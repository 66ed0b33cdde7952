"""The list of products that an account may add to its showcase, without what a restricted one may not add (N8).

The answer is read whole and written anew, or not given at all: an answer that can't be read is never let through
unfiltered. What could bring a part of it, or an older one, is not asked for: no ranges, no conditions, no compression.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway import fetch
from gateway.admission.decision import Decision, Header, Incoming, Reply
from gateway.admission.facts import caller, check_path_account
from gateway.admission.forwarding import forward, upstream_reply
from gateway.admission.gate import Gate
from gateway.errors import UpstreamUnreachable
from gateway.policy.model import Account, Product
from gateway.upstream.pool import UpstreamAnswer

_NOT_TRUE_OF_A_FILTERED_LIST = frozenset(
    (b"etag", b"last-modified", b"content-md5", b"digest", b"content-digest", b"repr-digest", b"accept-ranges")
)
_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


async def addable(gate: Gate, incoming: Incoming, decision: Decision) -> Reply:
    """Raises `UpstreamUnreachable` where a restricted account's list can't be read."""
    account_id = await caller(gate.identity, incoming)
    check_path_account(incoming.match.params.get("account_id"), account_id)
    gate.bodies.read(incoming.match.route, await incoming.body(), incoming.headers)
    account = gate.directory.peek_account(account_id) or await gate.directory.account(account_id)
    assert decision.surface is not None
    verdict = decision.verdict = gate.evaluate(account, decision.surface, decision.now)
    answer = await forward(gate, incoming, decision, account_id, None)
    if verdict.cap is not None and 200 <= answer.status < 300:
        answer = _filtered(answer, account)
    return upstream_reply(answer, decision)


def _filtered(answer: UpstreamAnswer, account: Account) -> UpstreamAnswer:
    if answer.status != 200:
        raise UpstreamUnreachable(f"The upstream answered the list of addable products with {answer.status}.")
    codings = [value for name, value in answer.headers if name.lower() == b"content-encoding"]
    document = fetch.decode(_decoder, answer.body)
    products = None if isinstance(document, fetch.Failure) else document.get("products")
    if isinstance(document, fetch.Failure) or not isinstance(products, list) or codings not in ([], [b"identity"]):
        raise UpstreamUnreachable("The upstream's list of addable products can't be read.")
    document["products"] = [row for row in products if _is_own(row, account)]
    headers = _truthful(answer.headers)
    return UpstreamAnswer(answer.status, answer.phrase, headers, msgspec.json.encode(document))


def _is_own(row: Any, account: Account) -> bool:
    """A row that does not say whose product it is, is not shown."""
    if not isinstance(row, dict):
        return False
    shop_id, product_id = row.get("shop_id"), row.get("product_id")
    if not isinstance(shop_id, str) or not isinstance(product_id, str):
        return False
    return account.owns(Product(product_id, shop_id))


def _truthful(headers: Sequence[Header]) -> list[Header]:
    return [header for header in headers if header[0].lower() not in _NOT_TRUE_OF_A_FILTERED_LIST]
