"""policy.toml to a checked `Policy`, or to every mistake in it at once.

What a file that passes promises to `evaluate`:

    each version has exactly one rule for each case of the space (`cases.SPACE`)
    versions ascend in `effective_from`, and the steps of each roll-out in time; percentages never fall (N12)
    while a roll-out is on its way, the version that follows has the same salt, so draws the same ones (N12)
    each rule with a cap has its message in every language, and claims only what is counted

Pure: bytes in, a policy or mistakes out. Knows nothing of which rules the platform has: they all stand in the
file.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from gateway.config import tables
from gateway.config.tables import Findings, shown, unknown
from gateway.errors import ConfigurationError, Mistake
from gateway.policy import cases
from gateway.policy.model import Case, Policy, Rule, ShopType, Standing, Step, Surface, Version
from gateway.policy.rollout import percent_at

_WITHOUT_SHOP = (Standing.unbound, Standing.creator)
LANGUAGES = ("zh-CN", "zh-Hant", "en")
_NAME = "1 to 64 of the characters A-Z a-z 0-9 . _ : -"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z", description=_NAME)]
Text = Annotated[str, Meta(min_length=1, max_length=500, description="what the merchant reads, 1 to 500 characters")]
Instant = Annotated[datetime, Meta(tz=True)]


class CasesEntry(Struct, frozen=True):
    """The cases that agree in every dimension given."""

    standing: Annotated[tuple[Standing, ...], Meta(min_length=1)] | None = None
    shop_types: Annotated[tuple[ShopType, ...], Meta(min_length=1)] | None = None
    cross_border: bool | None = None
    surfaces: Annotated[tuple[Surface, ...], Meta(min_length=1)] | None = None


class StepEntry(Struct, frozen=True):
    at: Instant
    percent: Annotated[float, Meta(ge=0, le=100)]


Rollout = Annotated[tuple[StepEntry, ...], Meta(max_length=100)]


class RuleEntry(Struct, frozen=True):
    id: Name
    cap: Annotated[int, Meta(ge=0, le=1000)] | Literal["none"]
    cases: Annotated[tuple[CasesEntry, ...], Meta(min_length=1, max_length=100)]
    message: str = ""
    rollout: Rollout | None = None


class VersionEntry(Struct, frozen=True):
    id: Name
    effective_from: Instant
    salt: Name
    rules: Annotated[tuple[RuleEntry, ...], Meta(min_length=1, max_length=100)]
    rollout: Rollout = ()


class Texts(Struct, frozen=True, rename={"zh_cn": "zh-CN", "zh_hant": "zh-Hant"}):
    zh_cn: Text
    zh_hant: Text
    en: Text

    def by_language(self) -> dict[str, str]:
        return dict(zip(LANGUAGES, (self.zh_cn, self.zh_hant, self.en), strict=True))


class Document(Struct, frozen=True):
    versions: Annotated[tuple[VersionEntry, ...], Meta(min_length=1, max_length=100)]
    messages: dict[str, Texts] = {}


def parse(data: bytes, file: str) -> Policy:
    """The policy in `data`. `file` is how messages call it. Raises ConfigurationError with all mistakes."""
    policy, mistakes = examine(data, file)
    if policy is None:
        raise ConfigurationError(mistakes)
    return policy


def examine(data: bytes, file: str) -> tuple[Policy | None, list[Mistake]]:
    """The policy, or None and what is wrong."""
    findings = Findings(file)
    table = tables.parse(data, findings)
    if table is None:
        return None, findings.mistakes
    document = tables.read(Document, table, findings)
    _check_order(document.versions, findings)
    for index, entry in enumerate(document.versions):
        _check_version(entry, f"versions[{index}]", document.messages, findings)
    versions = tuple(_version(entry, document.messages) for entry in document.versions)
    if not findings.mistakes:
        _check_salts(versions, findings)
    return (None if findings.mistakes else Policy(versions)), findings.mistakes


def _check_order(versions: tuple[VersionEntry, ...], findings: Findings) -> None:
    seen: dict[str, int] = {}
    for index, version in enumerate(versions):
        key = f"versions[{index}]"
        if not findings.has(f"{key}.id") and seen.setdefault(version.id, index) != index:
            problem = f"{shown(version.id)} is the id of versions[{seen[version.id]}] already; ids name one version"
            findings.add(f"{key}.id", problem)
        before = f"versions[{index - 1}].effective_from"
        if index == 0 or findings.has(before, f"{key}.effective_from"):
            continue
        start, previous = version.effective_from, versions[index - 1].effective_from
        if start == previous:
            problem = f"the same as that of versions[{index - 1}]; only one version can take effect at a time"
            findings.add(f"{key}.effective_from", problem)
        elif start < previous:
            problem = f"earlier than {previous.isoformat()} of versions[{index - 1}]; put the oldest version first"
            findings.add(f"{key}.effective_from", problem)


def _check_version(entry: VersionEntry, key: str, messages: dict[str, Texts], findings: Findings) -> None:
    _check_steps(entry.rollout, f"{key}.rollout", findings)
    seen: dict[str, int] = {}
    for index, rule in enumerate(entry.rules):
        place = f"{key}.rules[{index}]"
        if not findings.has(f"{place}.id") and seen.setdefault(rule.id, index) != index:
            problem = f"{shown(rule.id)} is the id of rules[{seen[rule.id]}] already; add the cases to that rule"
            findings.add(f"{place}.id", problem)
        _check_rule(rule, place, messages, findings)
    if _cases_are_known(entry, key, findings):
        _check_coverage(entry, key, findings)


def _cases_are_known(entry: VersionEntry, key: str, findings: Findings) -> bool:
    """Whether every rule's cases could be read: otherwise a hole would only be what follows from that."""
    return bool(entry.rules) and all(
        rule.cases and not findings.has(f"{key}.rules[{index}].cases") for index, rule in enumerate(entry.rules)
    )


def _check_rule(rule: RuleEntry, key: str, messages: dict[str, Texts], findings: Findings) -> None:
    for index, entry in enumerate(rule.cases):
        _check_entry(entry, f"{key}.cases[{index}]", findings)
    _check_steps(rule.rollout or (), f"{key}.rollout", findings)
    if rule.message and rule.message not in messages and not findings.has(f"{key}.message"):
        problem = f"no message has the name {shown(rule.message)}{unknown(rule.message, messages)}"
        findings.add(f"{key}.message", problem)
    if findings.has(f"{key}.cap"):
        return
    if rule.cap == "none" and rule.rollout is not None:
        findings.add(
            f"{key}.rollout",
            'the cap "none" restricts nobody, so there is nothing to roll out; remove it',
        )
    if rule.cap != "none" and not rule.message and not findings.has(f"{key}.message"):
        problem = "missing: a rule with a cap refuses, so it needs the name of a text"
        findings.add(f"{key}.message", f"{problem}{unknown('', messages)}")
    if rule.cap != "none":
        for index, entry in enumerate(rule.cases):
            _check_counted(rule.cap, entry, f"{key}.cases[{index}]", findings)


def _check_counted(cap: int, entry: CasesEntry, key: str, findings: Findings) -> None:
    """What is foreign is told by the account's open shop, and counted by session: elsewhere a cap would hold nobody."""
    if findings.has(key):
        return
    claimed = _selected(entry)
    if shopless := [standing for standing in _WITHOUT_SHOP if any(case.standing is standing for case in claimed)]:
        problem = f"claims {_words(shopless)}, who have no shop to tell foreign products by (N10, N14)"
        findings.add(f"{key}.standing", f'{problem}; a rule with a cap names "official", "pure_creator" or both')
    uncounted = [surface for surface in Surface if surface is not Surface.live_room]
    if cap and (found := [surface for surface in uncounted if any(case.surface is surface for case in claimed)]):
        problem = f'claims {_words(found)}, where nothing is counted; there a cap is 0 or "none"'
        findings.add(f"{key}.surfaces", f'{problem}, and one of {cap} is for surfaces = ["live_room"]')


def _words(names: Iterable[str]) -> str:
    return " and ".join(f'"{name}"' for name in names)


def _check_entry(entry: CasesEntry, key: str, findings: Findings) -> None:
    if findings.has(key) or (entry.shop_types is None and entry.cross_border is None):
        return
    for index, standing in enumerate(entry.standing or ()):
        if standing is not Standing.official:
            problem = f'"{standing}" has no shop; give it an entry without shop_types and cross_border'
            findings.add(f"{key}.standing[{index}]", problem)


def _check_steps(steps: tuple[StepEntry, ...], key: str, findings: Findings) -> None:
    for index in range(1, len(steps)):
        step, before = steps[index], steps[index - 1]
        place, earlier = f"{key}[{index}]", f"{key}[{index - 1}]"
        if not findings.has(f"{place}.at", f"{earlier}.at") and step.at <= before.at:
            problem = f"not later than {before.at.isoformat()} of the step before; put the steps in order of time"
            findings.add(f"{place}.at", problem)
        if not findings.has(f"{place}.percent", f"{earlier}.percent") and step.percent < before.percent:
            problem = f"falls from {before.percent:g} to {step.percent:g}; who was reached stays reached (N12)"
            findings.add(f"{place}.percent", problem)


def _check_coverage(entry: VersionEntry, key: str, findings: Findings) -> None:
    """Each case of the space belongs to exactly one rule."""
    claimed: dict[Case, int] = {}
    for index, rule in enumerate(entry.rules):
        for number, part in enumerate(rule.cases):
            twice: dict[int, set[Case]] = {}
            for case in _selected(part):
                if (owner := claimed.setdefault(case, index)) != index:
                    twice.setdefault(owner, set()).add(case)
            for owner, both in twice.items():
                findings.add(
                    f"{key}.rules[{index}].cases[{number}]",
                    f"rules {shown(entry.rules[owner].id)} and {shown(rule.id)} both claim "
                    f"{cases.summary(both)}; a case belongs to one rule",
                )
    if holes := [case for case in cases.SPACE if case not in claimed]:
        problem = f"no rule covers {cases.summary(holes)}; add it to a rule's cases"
        findings.add(f"{key}.rules", f'{problem} (one with cap = "none" where nothing is restricted)')


def _selected(entry: CasesEntry) -> frozenset[Case]:
    return cases.select(entry.standing, entry.shop_types, entry.cross_border, entry.surfaces)


def _check_salts(versions: tuple[Version, ...], findings: Findings) -> None:
    """A version that takes effect while a roll-out is on its way must draw the same accounts as that did.

    With another salt it would be rolled out to accounts drawn anew: beside those that the older version
    reached it would reach others, more than either percentage says, and nobody could tell from an account's
    place what holds.
    """
    for index, version in enumerate(versions):
        for earlier in reversed(versions[:index]):
            percents = [
                percent_at(rule.rollout, version.effective_from)
                for rule in earlier.cases.values()
                if rule.cap is not None
            ]
            if min(percents, default=100.0) >= 100.0:
                break
            if earlier.salt != version.salt:
                findings.add(
                    f"versions[{index}].salt",
                    f"keep {shown(earlier.salt)}, the salt of version {shown(earlier.id)}: when this version "
                    f"takes effect, its roll-out has only come to {min(percents):g} %, and another salt draws "
                    "other accounts (N12)",
                )
                break


def _version(entry: VersionEntry, messages: dict[str, Texts]) -> Version:
    shared = _steps(entry.rollout)
    found: dict[Case, Rule] = {}
    for part in entry.rules:
        cap = None if part.cap == "none" else part.cap
        own = shared if part.rollout is None else _steps(part.rollout)
        texts = messages.get(part.message)
        rule = Rule(part.id, cap, texts.by_language() if texts else {}, () if cap is None else own)
        for selection in part.cases:
            found.update(dict.fromkeys(_selected(selection), rule))
    return Version(entry.id, entry.effective_from.timestamp(), entry.salt, found)


def _steps(entries: tuple[StepEntry, ...]) -> tuple[Step, ...]:
    return tuple(Step(entry.at.timestamp(), entry.percent) for entry in entries)
