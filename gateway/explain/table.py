"""An explanation as a table for people, in the language of the explanation, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.explain.decision import Explanation
from gateway.explain.words import label
from gateway.policy.model import Surface
from gateway.refusals import Help, SlotView, beijing_time

_MAX_WIDTH_COLUMNS = 96


def render(explanation: Explanation, console: Console) -> None:
    """Print it as one table for people, at most 96 columns wide."""
    told = explanation
    colour = "green" if told.verdict == "allowed" else "red"
    title = Text(f" {_label(told, told.verdict)} ", style=f"bold {colour}")
    if told.reason:
        title.append(f"{told.status} {told.reason} ", style="default")
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, shown in _rows(told):
        grid.add_row(name and _label(told, name), shown)
    width = min(console.width, _MAX_WIDTH_COLUMNS)
    console.print(
        Panel(
            grid,
            title=title,
            title_align="left",
            border_style=colour,
            box=ROUNDED,
            width=width,
            padding=(0, 1),
        )
    )


def _label(told: Explanation, name: str, **values: object) -> str:
    return label(name, told.language, **values)


def _with_notes(name: str, *notes: str) -> Text:
    said = " · ".join(note for note in notes if note)
    return Text(name, style="bold").append(f"  {said}" if said else "", style="not bold")


def _rows(told: Explanation) -> list[tuple[str, RenderableType]]:
    shop = f"{_label(told, 'shop')} {told.shop_id}" if told.shop_id else ""
    kind = [
        _label(told, name)
        for name in (told.standing, told.shop_type, "cross_border" if told.cross_border else UNSET)
        if name
    ]
    rows: list[tuple[str, RenderableType]] = [("account", _with_notes(told.account_id, *kind, shop))]
    owner = "" if told.own is UNSET else _label(told, "own" if told.own else "foreign")
    product_shop = f"{_label(told, 'shop')} {told.product_shop_id}" if told.product_shop_id else ""
    rows.append(("product", _with_notes(told.product_id, owner, product_shop)))
    rows.append(("surface", Text(_label(told, told.surface))))
    if told.session_id:
        rows.append(("session", _with_notes(told.session_id, _label(told, told.state) if told.state else "")))
    rows.append(("at", _with_notes(beijing_time(told.at), _label(told, "beijing"))))
    if told.rule and told.policy_version:
        rows.append(("rule", _with_notes(told.rule, f"{_label(told, 'version')} {told.policy_version}")))
    rows.append(("why", Text(told.why).append(f"  {told.notice}" if told.notice else "", style="cyan")))
    if told.message and told.message != told.why:
        rows.append(("message", Text(told.message, style="yellow")))
    if told.cap and told.surface is Surface.live_room:
        rows.append(("places", _places(told)))
    if told.slots:
        rows.append(("", _slots(told, told.slots)))
    if advice := _unsaid(told):
        rows.append(("help", _advice(advice)))
    return rows


def _places(told: Explanation) -> str:
    if told.used is UNSET:
        return _label(told, "cap_only", cap=told.cap)
    remaining = 0 if told.remaining is UNSET else told.remaining
    return _label(told, "counted", cap=told.cap, used=told.used, remaining=remaining)


def _slots(told: Explanation, slots: Sequence[SlotView]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("product", "since", "cart"):
        table.add_column(_label(told, name), overflow="fold")
    for slot in slots:
        where = _label(told, "attached" if slot.attached else "gone")
        table.add_row(Text(slot.product_id), beijing_time(slot.since), where)
    return table


def _unsaid(told: Explanation) -> list[Help]:
    """The help without what the table has said by now: the reason, and the slots."""
    advice = list(told.help)
    if advice and (advice[0].title == told.why or (told.reason == "foreign_cap_reached" and told.slots)):
        del advice[0]
    return advice


def _advice(advice: Sequence[Help]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for one in advice:
        table.add_row(one.notice, Text(one.title))
    return table
