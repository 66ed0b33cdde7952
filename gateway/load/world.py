"""The accounts and products of a run: made up and sown into the reference platform, or read from a file.

`made_up` and `read` are pure but for reading the file; nothing here talks to the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from gateway.errors import ConfigurationError, Mistake
from gateway.load.judge import cap_of, own_shop_of
from gateway.load.scenario import Merchant
from gateway.policy.model import Account, Kind, Product, Shop, ShopType

MAX_ACCOUNTS: Final = 1000
"""Made-up accounts; more rooms share them, each with sessions of its own."""

OWN_PRODUCTS: Final = 3
ALLIANCE_PRODUCTS: Final = 64
ALLIANCE_SHOPS: Final = 8
MAX_FILE_BYTES: Final = 512 * 1024 * 1024
MAX_MISTAKES: Final = 20


class World(Struct, frozen=True):
    accounts: dict[str, Account]
    products: dict[str, Product]

    @property
    def shops(self) -> dict[str, str]:
        """Whose each product is."""
        return {product_id: product.shop_id for product_id, product in self.products.items()}

    def merchants(self) -> list[Merchant]:
        own: dict[str, list[str]] = {}
        for product in self.products.values():
            own.setdefault(product.shop_id, []).append(product.product_id)
        return [
            Merchant(account_id, shop := own_shop_of(account) or "", tuple(own.get(shop, ())))
            for account_id, account in self.accounts.items()
        ]

    def offer(self) -> list[tuple[str, str]]:
        """Products that at least one account must get through the alliance, as (product, shop)."""
        shops = {own_shop_of(account) for account in self.accounts.values()}
        alliance = [(p.product_id, p.shop_id) for p in self.products.values() if p.shop_id not in shops]
        return alliance or [(p.product_id, p.shop_id) for p in self.products.values()]


def made_up(label: str, rooms: int) -> World:
    """Official accounts of individual and enterprise shops (N3), with products of their own, and the
    alliance's."""
    accounts: dict[str, Account] = {}
    products: dict[str, Product] = {}
    for number in range(min(rooms, MAX_ACCOUNTS)):
        shop_type = ShopType.individual if number % 2 else ShopType.enterprise
        shop_id = f"{label}-shop{number}"
        account_id = f"{label}-a{number}"
        accounts[account_id] = Account(account_id, Kind.official, shop=Shop(shop_id, shop_type))
        for own in range(OWN_PRODUCTS):
            product_id = f"{label}-own{number}-{own}"
            products[product_id] = Product(product_id, shop_id)
    for number in range(ALLIANCE_PRODUCTS):
        product_id = f"{label}-ally{number}"
        products[product_id] = Product(product_id, f"{label}-allyshop{number % ALLIANCE_SHOPS}")
    return World(accounts, products)


class _Tag(Struct):
    type: Literal["account", "product"]


_tag = msgspec.json.Decoder(_Tag)
_account = msgspec.json.Decoder(Account)
_product = msgspec.json.Decoder(Product)


def read(file: str, cap: int) -> World:
    """The records of a JSON Lines file, in the platform's form. Raises `ConfigurationError`."""
    accounts: dict[str, Account] = {}
    products: dict[str, Product] = {}
    mistakes: list[Mistake] = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip() or len(mistakes) == MAX_MISTAKES:
            continue
        try:
            if _tag.decode(line).type == "account":
                account = _account.decode(line)
                accounts[account.account_id] = account
            else:
                product = _product.decode(line)
                products[product.product_id] = product
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            mistakes.append(Mistake(file, f"line {number}", str(error)))
    world = World(accounts, products)
    if not mistakes:
        if not any(cap_of(account, cap) is not None for account in accounts.values()):
            problem = "no account in it is one that the notice restricts: there is nothing to check"
            mistakes.append(Mistake(file, "", problem))
        elif not products:
            mistakes.append(Mistake(file, "", "no product in it: there is nothing to attach"))
    if mistakes:
        raise ConfigurationError(mistakes)
    return world


def _lines(file: str) -> list[bytes]:
    path = Path(file)
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            problem = f"is {size_bytes} bytes long, expected at most {MAX_FILE_BYTES}"
            raise ConfigurationError([Mistake(file, "", problem)])
        return path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigurationError([Mistake(file, "", f"cannot be read: {error.strerror}")]) from error
