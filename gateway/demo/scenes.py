"""The story that the demo plays: scenes of the notice as data, each with what is expected of it.

Knows nothing of sockets or terminals. A step is a request as a live-room client makes it and what must come back.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

CAP_MESSAGE = "累计添加联盟商品数已达上限，请添加您店铺的商品喔~"
ELSEWHERE_MESSAGE = "您的店铺类型暂不支持添加联盟商品，请添加自己店铺商品"
ELSEWHERE_TRADITIONAL = "您的店鋪類型暫不支持添加聯盟商品，請添加自己店鋪商品"
ELSEWHERE_ENGLISH = "Shops of your type can't add alliance products for now; please add products of your own shop."

INDIVIDUAL, FLAGSHIP, CROSSBORDER = "shop-individual", "shop-flagship", "shop-crossborder"
CREATOR, PURE_CREATOR, ENTERPRISE = "creator-li", "shop-purecreator", "shop-enterprise"
RACERS = 50


class Step(Struct, frozen=True):
    """`body` None: none is sent. `status`, `reason` and `detail` are what must come back (the last two where given);
    `used` and `doubtful`, how many places the answer must say are used, and which of them are in doubt; `offered`, a
    product that a list must have, and `listed`, all that it may have. `to_platform`: asked of the platform itself, past
    the gateway. `wait_seconds`: asked again until it is as expected, so long."""

    says: str
    method: str
    path: str
    account: str = INDIVIDUAL
    body: dict[str, Any] | None = None
    status: int = 200
    reason: str = ""
    detail: str = ""
    language: str = ""
    to_platform: bool = False
    used: int | None = None
    doubtful: tuple[str, ...] | None = None
    offered: str = ""
    listed: tuple[str, ...] | None = None
    wait_seconds: float = 0.0


class Race(Struct, frozen=True):
    """`RACERS` clients attach different products to one session at once; so many get in."""

    says: str
    session_id: str
    account: str
    winners: int


class MerchantView(Struct, frozen=True):
    """The session's places as a table: how many are `used`, by what, since when."""

    says: str
    session_id: str
    account: str
    used: int


class Scene(Struct, frozen=True):
    """`notice` names the rules that it shows."""

    title: str
    notice: str
    steps: tuple[Step | Race | MerchantView, ...]


def _create(session_id: str, account: str = INDIVIDUAL) -> Step:
    return Step(
        f"{account} prepares a live session",
        "POST",
        "/live/sessions",
        account,
        {"account_id": account, "session_id": session_id},
        201,
    )


def _attach(session_id: str, product: str, says: str, account: str = INDIVIDUAL, **expected: Any) -> Step:
    return Step(says, "POST", f"/live/sessions/{session_id}/products", account, {"product_id": product}, **expected)


def _full(session_id: str, product: str, says: str, account: str = INDIVIDUAL) -> Step:
    refused: dict[str, Any] = {"status": 403, "reason": "foreign_cap_reached", "detail": CAP_MESSAGE, "used": 3}
    return _attach(session_id, product, says, account, **refused)


def _view(session_id: str, says: str, **expected: Any) -> Step:
    return Step(says, "GET", f"/_gateway/sessions/{session_id}", **expected)


def _fault(mode: str) -> Step:
    body = {"operation": "attach", "rate": 1, "mode": mode}
    return Step(f"The upstream begins to fail: {mode}", "POST", "/_platform/faults", body=body, to_platform=True)


_END_OF_FAULTS = Step("The upstream is well again", "DELETE", "/_platform/faults", to_platform=True, status=204)


def story(run: str) -> tuple[Scene, ...]:
    """The scenes; `run` makes the session ids its own."""
    one, two, three, four, five = (f"{run}-{n}" for n in range(1, 6))
    return (
        Scene(
            "A professional shop sells only its own products",
            "N1",
            (
                _create(one, FLAGSHIP),
                _attach(one, "own-flagship-1", "It adds a product of its own", FLAGSHIP),
                _attach(
                    one,
                    "ally-1",
                    "It adds another shop's product",
                    FLAGSHIP,
                    status=403,
                    reason="foreign_not_allowed",
                    detail=CAP_MESSAGE,
                ),
            ),
        ),
        Scene(
            "A non-professional shop may add three in a session, and its own without limit",
            "N3",
            (
                _create(two),
                _attach(two, "ally-1", "The first of another shop"),
                _attach(two, "own-individual-1", "One of its own, which never counts"),
                Step(
                    "Two more at once",
                    "POST",
                    f"/live/sessions/{two}/products",
                    body={"product_ids": ["ally-2", "ally-3"]},
                ),
                _full(two, "ally-4", "The fourth"),
                _attach(two, "ally-2", "One that is there already needs no other place"),
            ),
        ),
        Scene(
            "Before the start the selection may change; afterwards nothing comes back",
            "N5, N6",
            (
                Step(
                    "Before the start: replace one",
                    "PUT",
                    f"/live/sessions/{two}/products/ally-1",
                    body={"product_id": "ally-5"},
                ),
                Step("Before the start: remove one", "DELETE", f"/live/sessions/{two}/products/ally-2", status=204),
                _attach(two, "ally-6", "Its place is free again"),
                Step("The session goes live", "POST", f"/live/sessions/{two}/start"),
                Step("Live: remove one", "DELETE", f"/live/sessions/{two}/products/ally-6", status=204),
                _view(two, "Live: three places are used, though the cart holds two", used=3),
                _full(two, "ally-7", "Live: its place is not free"),
                _attach(two, "ally-6", "Live: the same product may come back"),
                Step(
                    "Live: replace one",
                    "PUT",
                    f"/live/sessions/{two}/products/ally-5",
                    body={"product_id": "ally-8"},
                    status=403,
                    reason="replace_after_start",
                ),
                Step("Live: remove another", "DELETE", f"/live/sessions/{two}/products/ally-5", status=204),
                Step("The session ends", "POST", f"/live/sessions/{two}/end"),
                _attach(two, "ally-3", "Nothing is attached to it any more", status=409, reason="session_ended"),
            ),
        ),
        Scene(
            f"The next session starts afresh, and {RACERS} clients race for its three places",
            "N7",
            (
                _create(three),
                Race(f"{RACERS} clients, {RACERS} different products, at once", three, INDIVIDUAL, 3),
                _full(three, "ally-9", "The session is full, whoever asks"),
            ),
        ),
        Scene(
            "Showcase and short video take no foreign product, and the list does not offer any",
            "N4, N8",
            (
                Step(
                    "The showcase",
                    "POST",
                    f"/accounts/{INDIVIDUAL}/showcase/products",
                    body={"product_id": "ally-1"},
                    status=403,
                    reason="foreign_not_allowed",
                    detail=ELSEWHERE_MESSAGE,
                ),
                Step(
                    "A short video, asked in English",
                    "POST",
                    f"/accounts/{INDIVIDUAL}/videos/v1/products",
                    body={"product_id": "ally-1"},
                    status=403,
                    reason="foreign_not_allowed",
                    detail=ELSEWHERE_ENGLISH,
                    language="en",
                ),
                Step(
                    "The same in traditional characters",
                    "POST",
                    f"/accounts/{INDIVIDUAL}/videos/v1/products",
                    body={"product_id": "ally-1"},
                    status=403,
                    reason="foreign_not_allowed",
                    detail=ELSEWHERE_TRADITIONAL,
                    language="zh-Hant",
                ),
                Step(
                    "The platform's own list still offers ally-5, which was sold live",
                    "GET",
                    f"/accounts/{INDIVIDUAL}/showcase/addable",
                    to_platform=True,
                    offered="ally-5",
                ),
                Step(
                    "The list as the merchant gets it: only products of its own",
                    "GET",
                    f"/accounts/{INDIVIDUAL}/showcase/addable",
                    listed=tuple(f"own-individual-{n}" for n in range(1, 6)),
                ),
            ),
        ),
        Scene(
            "Who is not restricted: cross-border merchants, creators, pure creators",
            "N2, N11, N14",
            (
                *_free(four, CROSSBORDER),
                *_free(f"{run}-li", CREATOR),
                *_free(f"{run}-pure", PURE_CREATOR),
            ),
        ),
        Scene(
            "A shop changes its type, and the rules of the new type hold",
            "N9",
            (
                Step(
                    "The flagship shop becomes an individual one",
                    "PUT",
                    f"/_platform/accounts/{FLAGSHIP}",
                    body={
                        "account_id": FLAGSHIP,
                        "kind": "official",
                        "shop": {"shop_id": "flagship", "shop_type": "individual"},
                    },
                    to_platform=True,
                ),
                _attach(one, "ally-1", "Now it may add another shop's product", FLAGSHIP, wait_seconds=5.0),
            ),
        ),
        Scene(
            "The upstream fails, and nobody knows whether it attached: the place stays taken until its list has said",
            "the promise",
            (
                _create(five),
                _attach(five, "ally-1", "One product is there"),
                _fault("timeout"),
                _attach(five, "ally-2", "No answer; it was not applied", status=504, reason="upstream_timeout"),
                _END_OF_FAULTS,
                _fault("apply_then_drop"),
                _attach(five, "ally-3", "No answer; it was applied", status=502, reason="upstream_unreachable"),
                _END_OF_FAULTS,
                _view(five, "All three places count", used=3, doubtful=("ally-2", "ally-3")),
                _full(five, "ally-4", "So nothing more gets in"),
                _view(
                    five,
                    "Settled: what was applied counts, the other place is free",
                    used=2,
                    doubtful=(),
                    wait_seconds=15.0,
                ),
                _attach(five, "ally-4", "It can be used"),
                _full(five, "ally-5", "And that was the third"),
            ),
        ),
        Scene(
            "What the merchant sees",
            "N3, N5",
            (
                MerchantView(
                    "The session that has ended: what was removed live is not in the cart, and counts",
                    two,
                    INDIVIDUAL,
                    3,
                ),
                MerchantView("The session that the upstream failed in", five, INDIVIDUAL, 3),
            ),
        ),
    )


def _free(session_id: str, account: str) -> tuple[Step, ...]:
    return (
        _create(session_id, account),
        Step(
            "Five products of other shops at once",
            "POST",
            f"/live/sessions/{session_id}/products",
            account,
            {"product_ids": [f"ally-{n}" for n in range(1, 6)]},
        ),
    )
