"""What must be known to decide: who asks, whose session it is, whose products they are.

From the directory's memory where it is fresh (`at_hand`), without an await; else all misses at once (`gather`).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gateway.admission.decision import Asking
from gateway.directory import Directory
from gateway.errors import NotAccountOwner, NotSessionOwner, SessionEnded
from gateway.identity import Identity
from gateway.policy.model import Account, Product, Session, SessionState


class Facts(Struct, frozen=True, gc=False):
    """`session` is None on surfaces without one; `products` is empty where their owners do not matter."""

    account: Account
    session: Session | None
    products: Sequence[Product]


def at_hand(directory: Directory, account_id: str, session_id: str | None, product_ids: Sequence[str]) -> Facts | None:
    """What the directory has in memory; None where anything of it must be asked. Raises as `gather` does."""
    account = directory.peek_account(account_id)
    if account is None:
        return None
    session = None
    if session_id is not None and (session := directory.peek_session(session_id)) is None:
        return None
    products = []
    if account.recorded:
        for product_id in product_ids:
            product = directory.peek_product(product_id)
            if product is None:
                return None
            products.append(product)
    return _checked(account, session, products)


async def gather(directory: Directory, account_id: str, session_id: str | None, product_ids: Sequence[str]) -> Facts:
    """All at once. Raises `AccountUnknown`, `SessionUnknown`, `NotSessionOwner`, `SessionEnded`, `ProductUnknown` or
    `DirectoryUnavailable`. The products of an account that nothing restricts are not asked for."""
    account = directory.peek_account(account_id)
    if account is not None and not account.recorded:
        product_ids = ()
    return _checked(*await _ask(directory, account_id, session_id, product_ids))


def _checked(account: Account, session: Session | None, products: list[Product]) -> Facts:
    if session is not None:
        check_owner(session, account.account_id)
        if session.state is SessionState.ended:
            raise SessionEnded(f"Session {session.session_id} has ended: nothing can be attached to it any more.")
    return Facts(account, session, products)


async def caller(identity: Identity, incoming: Asking) -> str:
    """Whose account asks; at once where it is known who is behind the header or token."""
    peer_ip, headers = incoming.peer_ip, incoming.headers
    return identity.peek(peer_ip, headers) or await identity.resolve(peer_ip, headers)


def check_path_account(named: str | None, account_id: str) -> None:
    """An account in the path serves only itself."""
    if named is not None and named != account_id:
        raise NotAccountOwner(f"The address names account {named}, but another account asks.")


def check_owner(session: Session, account_id: str) -> None:
    if session.account_id != account_id:
        raise NotSessionOwner(f"Session {session.session_id} belongs to another account.")


async def _ask(
    directory: Directory, account_id: str, session_id: str | None, product_ids: Sequence[str]
) -> tuple[Account, Session | None, list[Product]]:
    sessions = directory.session_records.want((session_id,) if session_id is not None else ())
    accounts = directory.account_records.want((account_id,))
    products = directory.product_records.want(product_ids)
    session = next(iter(await sessions()), None)
    (account,) = await accounts()
    return account, session, await products() if account.recorded else []
