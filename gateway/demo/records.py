"""The accounts and products that a platform starts with: the demo's own, or an operator's file.

Promises that a file is taken whole or not at all, mistakes named by line. Knows nothing of sessions or HTTP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from gateway.errors import ConfigurationError, Mistake
from gateway.policy.model import Account, Kind, Product, Shop, ShopType

Record = Account | Product

MAX_FILE_BYTES: Final = 512 * 1024 * 1024
MAX_MISTAKES: Final = 20
OWN_PRODUCTS: Final = 5
ALLIANCE_PRODUCTS: Final = 20
ALLIANCE_SHOPS: Final = 4


def _demo_accounts() -> tuple[Account, ...]:
    """One official account for each shop type, named after it, then one for each exception of the notice."""
    accounts = []
    for shop_type in ShopType:
        name = shop_type.replace("_", "-")
        accounts.append(Account(f"shop-{name}", Kind.official, shop=Shop(name, shop_type)))
    crossborder = Shop("crossborder", ShopType.flagship, cross_border=True)
    closed = Shop("closed", ShopType.individual, status="closed")
    accounts += [
        Account("shop-crossborder", Kind.official, shop=crossborder),
        Account("shop-purecreator", Kind.official, True, Shop("purecreator", ShopType.individual)),
        Account("shop-closed", Kind.official, shop=closed),
        Account("creator-li", Kind.creator),
    ]
    return tuple(accounts)


def _demo_products(accounts: tuple[Account, ...]) -> tuple[Product, ...]:
    shops = [account.shop.shop_id for account in accounts if account.shop is not None]
    own = [Product(f"own-{shop}-{n}", shop) for shop in shops for n in range(1, OWN_PRODUCTS + 1)]
    ally = [Product(f"ally-{n}", f"ally-shop-{(n - 1) % ALLIANCE_SHOPS + 1}") for n in range(1, ALLIANCE_PRODUCTS + 1)]
    return (*own, *ally)


DEMO_ACCOUNTS: Final = _demo_accounts()
"""`shop-<type>` for every shop type (`shop-flagship`, `shop-individual`, `shop-official-flagship`, …), and
`shop-crossborder` (flagship, cross-border), `shop-purecreator` (individual, sells as a pure creator),
`shop-closed` (individual, its shop is closed), `creator-li` (bound to no shop). The shop of `shop-X` has
the id `X`."""

DEMO_PRODUCTS: Final = _demo_products(DEMO_ACCOUNTS)
"""`own-X-1` to `own-X-5` for each shop `X` above, and `ally-1` to `ally-20`, which belong to `ally-shop-1` to
`ally-shop-4`, bound to no account here: foreign to everybody."""

DEMO_RECORDS: Final[tuple[Record, ...]] = (*DEMO_ACCOUNTS, *DEMO_PRODUCTS)


class _Tag(msgspec.Struct):
    type: Literal["account", "product"]


_tag = msgspec.json.Decoder(_Tag)
_account = msgspec.json.Decoder(Account)
_product = msgspec.json.Decoder(Product)


def load(file: Path) -> tuple[Record, ...]:
    """The records of a JSON Lines file: one object a line, in the directory's form and with a `type`.

    Of two records with one id the later holds. Raises ConfigurationError, `MAX_MISTAKES` at most.
    """
    try:
        size_bytes = file.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            problem = f"is {size_bytes} bytes long, expected at most {MAX_FILE_BYTES}"
            raise ConfigurationError([Mistake(str(file), "", problem)])
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigurationError([Mistake(str(file), "", f"cannot be read: {error.strerror}")]) from error
    records: list[Record] = []
    mistakes: list[Mistake] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append((_account if _tag.decode(line).type == "account" else _product).decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            mistakes.append(Mistake(str(file), f"line {number}", str(error)))
            if len(mistakes) == MAX_MISTAKES:
                break
    if mistakes:
        raise ConfigurationError(mistakes)
    return tuple(records)
