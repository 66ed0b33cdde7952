"""policy.toml: what loads, and that every mistake is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigurationError, Mistake
from gateway.policy import cases
from gateway.policy.document import parse
from gateway.policy.model import Case, Policy, ShopType, Standing, Surface
from gateway.policy.rollout import percent_at

HERE = Path(__file__).parent
BAD = sorted((HERE / "bad").glob("*.toml"))
SHIPPED = (HERE.parent.parent / "deploy" / "policy.toml").read_text()


def mistakes(data: bytes) -> list[Mistake]:
    with pytest.raises(ConfigurationError) as raised:
        parse(data, "policy.toml")
    return raised.value.mistakes


def load(text: str) -> Policy:
    return parse(text.encode(), "policy.toml")


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_each_mistake_is_named_with_its_key_and_what_was_expected(file: Path) -> None:
    key, _, fragment = file.read_text().partition("\n")[0].removeprefix("# ").partition(" | ")
    (found,) = mistakes(file.read_bytes())
    assert found.key == ("" if key == "(file)" else key)
    assert fragment in found.problem


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    found = mistakes((HERE / "many_mistakes.toml").read_bytes())
    assert [mistake.key for mistake in found] == [
        "versions[0].effective_from",
        "versions[0].rules[0].cap",
        "versions[0].rules[0].cases[0].shop_types[0]",
        "versions[0].rules[0].cases[0].surfaces[1]",
        "versions[2].rules",
        "messages.live_room.zh-Hant",
        "versions[1].id",
        "versions[0].rollout[1].at",
        "versions[0].rollout[1].percent",
        "versions[0].rules[1].id",
        "versions[0].rules[1].message",
        "versions[0].rules[1].cases[0].surfaces",
        "versions[1].rules[1].cases[1]",
        "versions[1].rules",
    ]


def test_what_follows_from_a_mistake_is_not_a_mistake_of_its_own() -> None:
    found = mistakes(SHIPPED.replace('"individual", "enterprise"], surfaces = ["live_room"]', '"individul"]').encode())
    assert [mistake.key for mistake in found] == ["versions[0].rules[2].cases[0].shop_types[0]"]


def test_the_shipped_file_covers_every_case_once() -> None:
    (version,) = load(SHIPPED).versions
    assert set(version.cases) == set(cases.SPACE)
    assert len(cases.SPACE) == 7 * 2 * 3 + 3 * 3
    assert {rule.id for rule in version.cases.values()} == {"N1", "N2", "N3", "N4", "N10", "N11", "N14"}


def test_the_example_in_the_shipped_file_is_valid_once_its_comment_signs_are_gone() -> None:
    old, new = load(re.sub(r"(?m)^#(?=[^ #\n])", "", SHIPPED)).versions
    assert new.effective_from > old.effective_from
    changed = {case for case in cases.SPACE if new.cases[case].cap != old.cases[case].cap}
    assert changed == cases.select(None, [ShopType.individual, ShopType.enterprise], None, [Surface.live_room])
    assert {new.cases[case].cap for case in changed} == {0}


def test_a_time_may_be_a_string_and_any_zone() -> None:
    same = SHIPPED.replace("effective_from = 2026-07-01T00:00:00+08:00", 'effective_from = "2026-06-30T16:00:00Z"')
    assert same != SHIPPED
    assert load(same).versions[0].effective_from == load(SHIPPED).versions[0].effective_from


def test_a_rules_own_rollout_goes_before_that_of_its_version() -> None:
    own = SHIPPED.replace('id = "N3"\ncap = 3', 'id = "N3"\ncap = 3\nrollout = []')
    (version,) = load(own).versions
    assert version.cases[Case(Standing.official, ShopType.individual, False, Surface.live_room)].rollout == ()
    n1 = version.cases[Case(Standing.official, ShopType.mall, False, Surface.live_room)]
    assert percent_at(n1.rollout, version.effective_from) == 1
    assert version.cases[Case(Standing.creator, None, None, Surface.live_room)].rollout == ()


def two_versions(*, second: str, until: str) -> str:
    """The shipped file and a copy of it with another salt, in force from `second` on; the first one's roll-out ends at
    `until`."""
    head, _, body = SHIPPED.partition("\n[[versions]]\n")
    first = "\n[[versions]]\n" + body.replace("2026-07-31T00:00:00", until)
    later = (
        ("\n[[versions]]\n" + body)
        .replace('id = "2026-07"', 'id = "later"')
        .replace('salt = "2026-07"', 'salt = "other"')
        .replace("effective_from = 2026-07-01T00:00:00", f"effective_from = {second}")
    )
    return head + first + later


def test_the_salt_may_change_once_a_rollout_has_come_to_everybody() -> None:
    text = two_versions(second="2026-07-31T00:00:00", until="2026-07-31T00:00:00")
    assert [version.salt for version in load(text).versions] == ["2026-07", "other"]


def test_the_salt_may_not_change_before() -> None:
    text = two_versions(second="2026-07-30T23:59:59", until="2026-07-31T00:00:00")
    (found,) = mistakes(text.encode())
    assert found.key == "versions[1].salt"
    assert 'keep "2026-07"' in found.problem
    assert "80 %" in found.problem


@given(st.sets(st.sampled_from(cases.SPACE), min_size=1))
@settings(max_examples=100)
def test_cases_are_told_in_entries_that_select_just_them(chosen: set[Case]) -> None:
    text = cases.summary(chosen)
    entries = re.findall(r"\{.*?\}", text)
    selected: list[Case] = []
    for entry in entries:
        words = dict(re.findall(r"(\w+) = (\[.*?\]|true|false)", entry))
        lists = {name: re.findall(r'"(\w+)"', value) for name, value in words.items()}
        border = {"true": True, "false": False}.get(words.get("cross_border", ""))
        standings = [Standing(name) for name in lists["standing"]]
        shop_types = [ShopType(name) for name in lists["shop_types"]] if "shop_types" in lists else None
        surfaces = [Surface(name) for name in lists["surfaces"]] if "surfaces" in lists else None
        selected += cases.select(standings, shop_types, border, surfaces)
    assert sorted(selected) == sorted(selected_once for selected_once in set(selected))
    assert set(selected) == chosen
