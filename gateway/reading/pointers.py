"""Where a body names its products: JSON pointers (RFC 6901) with `*` for each element, compiled to one tree.

The pointers of a route are alternatives: a body uses exactly one of them. Taking the ids out rebuilds, at the
same time, the part of the document that the pointers name, and nothing else of it.

A token is a member's name or `*`; numbers are names too, never an index.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from gateway.errors import BodyMalformed
from gateway.reading.document import kind, step
from gateway.reading.spelling import MAX_NAME_CHARS, IdCheck, fold, shown

_MAX_TOKENS = 8
MAX_MEMBERS = 256
"""Of an object whose names are compared: folding a name takes some 50 µs where every character needs it."""


def tokens(pointer: str) -> tuple[str, ...]:
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])


class Names:
    """The members of one object that mean something. Anything nearly spelt like one of them is refused."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._exact = frozenset(names)
        self._folded = {fold(name): name for name in names}

    def refuse_variants(self, value: dict[str, Any], where: str) -> None:
        if len(value) > MAX_MEMBERS:
            raise BodyMalformed(f"{where or 'The body'} has more than {MAX_MEMBERS} members: send fewer.")
        for name in value:
            if name not in self._exact and (meant := self._folded.get(fold(name))) is not None:
                raise BodyMalformed(f"{step(where, name)} is nearly {shown(meant)}: spell it exactly, or leave it out.")


class Place:
    """One level of the tree. `pointer` is the one that ends here, `each` what holds for an array's elements,
    `members` what holds for an object's members."""

    def __init__(self) -> None:
        self.pointer: str | None = None
        self.each: Place | None = None
        self.members: dict[str, Place] = {}
        self.names = Names(())

    def add(self, pointer: str, path: tuple[str, ...]) -> None:
        if not path:
            self.pointer = pointer
        elif path[0] == "*":
            self.each = self.each or Place()
            self.each.add(pointer, path[1:])
        else:
            self.members.setdefault(path[0], Place()).add(pointer, path[1:])
            self.names = Names(tuple(self.members))

    @property
    def expected(self) -> str:
        wanted = [
            *(["a string"] if self.pointer is not None else []),
            *(["an array"] if self.each is not None else []),
            *(["an object"] if self.members else []),
        ]
        return " or ".join(wanted)


def pointer_problem(pointer: str) -> str | None:
    """Why ids can't be taken from a body by this pointer, or None."""
    path = tokens(pointer)
    if not path or path[0] == "*":
        return "must start with a member's name: a body is an object"
    if len(path) > _MAX_TOKENS or any(len(token) > MAX_NAME_CHARS for token in path):
        return f"must have at most {_MAX_TOKENS} parts of at most {MAX_NAME_CHARS} characters"
    return None


def compiled(pointers: tuple[str, ...]) -> Place:
    root = Place()
    for pointer in pointers:
        root.add(pointer, tokens(pointer))
    return root


class Taking:
    """The ids of one document on their way out of it, in document order. `at` says where each was first
    found."""

    def __init__(self, is_id: IdCheck, max_ids: int) -> None:
        self._is_id = is_id
        self._max_ids = max_ids
        self._pointer: str | None = None
        self.at: dict[str, str] = {}

    def take(self, place: Place, value: Any, where: str) -> Any:
        """The value with only what the pointers name. Raises BodyMalformed."""
        if isinstance(value, str) and place.pointer is not None:
            self._note(value, place.pointer, where)
            return value
        if isinstance(value, list) and place.each is not None:
            if not value:
                raise BodyMalformed(f"{where} is empty: name at least one product, or send nothing.")
            if len(value) > self._max_ids:
                raise self._too_many()
            return [self.take(place.each, item, step(where, index)) for index, item in enumerate(value)]
        if isinstance(value, dict) and place.members:
            return self.take_members(place, value, where)
        raise BodyMalformed(f"{where} must be {place.expected}, not {kind(value)}.")

    def take_members(self, place: Place, value: dict[str, Any], where: str) -> dict[str, Any]:
        place.names.refuse_variants(value, where)
        present = [name for name in place.members if name in value]
        names = " or ".join(step(where, name) for name in place.members)
        if not present:
            raise BodyMalformed(f"{names} is missing: it names the product.")
        if len(present) > 1:
            raise BodyMalformed(
                f"The body has {' and '.join(step(where, name) for name in present)}: send one of them."
            )
        (name,) = present
        return {name: self.take(place.members[name], value[name], step(where, name))}

    def _note(self, text: str, pointer: str, where: str) -> None:
        if self._pointer is None:
            self._pointer = pointer
        elif pointer != self._pointer:
            raise BodyMalformed(f"{where}: the body names products by {self._pointer} and by {pointer}: use one.")
        if not self._is_id(text):
            raise BodyMalformed(f"{where} is not an id: its characters or its length are not allowed.")
        if text in self.at:
            raise BodyMalformed(f"{where} names the same product as {self.at[text]}: name each product once.")
        if len(self.at) == self._max_ids:
            raise self._too_many()
        self.at[text] = where

    def _too_many(self) -> BodyMalformed:
        return BodyMalformed(f"The body names more than {self._max_ids} products: send them in several requests.")


_tokens_of = lru_cache(maxsize=64)(tokens)

MAX_REMEMBERED = 4096
MAX_REMEMBERED_BYTES = 256
"""Of answers, what they say was applied: to the same product, many are the same."""


def applied_ids(raw: bytes, pointer: str) -> tuple[str, ...] | None:
    """The strings that an upstream's answer holds at `pointer`, in its order, or in the list that stands there; None
    where the answer does not say: it is not JSON, something on the way is missing, or a value is of another type."""
    return _remembered_ids(raw, pointer) if len(raw) <= MAX_REMEMBERED_BYTES else _ids_at(raw, pointer)


def _ids_at(raw: bytes, pointer: str) -> tuple[str, ...] | None:
    if not pointer:
        return None
    try:
        found: list[Any] = [msgspec.json.decode(raw)]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    for token in _tokens_of(pointer):
        deeper: list[Any] = []
        for value in found:
            if token == "*":
                if not isinstance(value, list):
                    return None
                deeper += value
            elif isinstance(value, dict) and token in value:
                deeper.append(value[token])
            else:
                return None
        found = deeper
    if len(found) == 1 and isinstance(found[0], list) and not pointer.endswith("/*"):
        found = found[0]
    return tuple(found) if all(isinstance(value, str) for value in found) else None


_remembered_ids = lru_cache(MAX_REMEMBERED)(_ids_at)
