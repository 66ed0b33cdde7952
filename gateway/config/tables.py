"""TOML tables to typed structs, with every mistake named by its key path.

msgspec stops at the first mistake, and an operator wants the whole list: so a document is taken apart here
struct by struct and key by key, and msgspec judges the single values. What is wrong is filled with a blank of
its type, so that the checks between keys can go on; whoever calls must refuse the result where
`Findings.mistakes` is not empty.

Knows nothing of what any key means: gateway.toml and policy.toml are both read through it.
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
import tomllib
from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from gateway.errors import Mistake

MAX_FILE_BYTES = 1_048_576
_MAX_SHOWN = 60
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")

S = TypeVar("S", bound=msgspec.Struct)


class Findings:
    """The mistakes of one file, in the order in which they were found. The values of `secrets` are never
    shown."""

    def __init__(self, file: str, secrets: frozenset[str] = frozenset()) -> None:
        self.mistakes: list[Mistake] = []
        self._file = file
        self._secrets = secrets
        self._variables: dict[str, str] = {}
        self._keys: list[str] = []

    def add(self, key: str, problem: str) -> None:
        self._keys.append(key)
        name = key.partition("[")[0]
        if variable := self._variables.get(name):
            self.mistakes.append(Mistake("environment", variable + key[len(name) :], problem))
        else:
            self.mistakes.append(Mistake(self._file, key, problem))

    def add_variable(self, variable: str, problem: str) -> None:
        self.mistakes.append(Mistake("environment", variable, problem))

    def override(self, key: str, variable: str) -> None:
        """From now on a mistake in `key` is one in the environment variable that set it."""
        self._variables[key] = variable

    def has(self, *keys: str) -> bool:
        """Whether one of these keys, or something in it, is wrong already: then what depends on it is not
        judged."""
        return any(found == key or found.startswith((f"{key}.", f"{key}[")) for key in keys for found in self._keys)

    def shown(self, key: str, value: object) -> str:
        return "a value that is kept secret here" if key in self._secrets else shown(value)


def shown(value: object) -> str:
    """A value as TOML would write it, on one line and not too long."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            text = json.dumps(value, ensure_ascii=False)
            return text if len(text) <= _MAX_SHOWN else f'{text[:_MAX_SHOWN]}…"'
        case int():
            return str(value) if value.bit_length() <= 64 else "a far larger number"
        case float():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return type(value).__name__


def suggestion(word: object, known: Iterable[str], likeness: float = 0.6) -> str:
    """The rest of a sentence: the known word that was probably meant, or nothing."""
    if not isinstance(word, str):
        return ""
    words = list(known)
    close = difflib.get_close_matches(word[:64], words, 1, likeness) or [w for w in words if w.lower() == word.lower()]
    return f"; did you mean {shown(close[0])}?" if close else ""


def unknown(word: str, known: Iterable[str]) -> str:
    """The rest of a sentence: the known word that was probably meant, or all that there are."""
    words = list(known)
    return suggestion(word, words) or "; there are " + (", ".join(words) or "none")


def join(parent: str, name: str) -> str:
    part = name if _BARE_KEY.fullmatch(name) else shown(name)
    return f"{parent}.{part}" if parent else part


def parse(data: bytes, findings: Findings) -> dict[str, Any] | None:
    """The document as plain values, or None and one mistake, with the line where there is one."""
    if len(data) > MAX_FILE_BYTES:
        findings.add("", f"the file has {len(data)} bytes; at most {MAX_FILE_BYTES} are read")
        return None
    try:
        # Some editors begin each file with a byte order mark, which TOML does not know.
        return tomllib.loads(data.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        findings.add("", f"not UTF-8 (at line {line}): save the file as UTF-8")
    except tomllib.TOMLDecodeError as error:
        findings.add("", f"not TOML: {error}")
    except RecursionError:
        findings.add("", "not TOML that can be read: lists or tables are nested too deeply")
    except ValueError:
        findings.add("", "not TOML that can be read: a number is too long")
    return None


def read(kind: type[S], value: object, findings: Findings, key: str = "") -> S:
    """The table as a struct of this kind; each wrong, missing or unknown key goes to the findings."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    if not isinstance(value, dict):
        findings.add(key, f"expected {describe(kind)}, got {findings.shown(key, value)}")
        return kind(**{field.name: blank(field.type) for field in fields.values() if field.required})
    for name in value:
        if name not in fields:
            findings.add(join(key, name), "unknown key" + unknown(name, fields))
    values = {}
    for name, field in fields.items():
        place = join(key, name)
        if name in value:
            values[field.name] = convert(value[name], field.type, findings, place)
        elif field.required and _is_struct(field.type):
            values[field.name] = read(field.type, {}, findings, place)
        elif field.required:
            findings.add(place, f"missing: expected {describe(field.type)}")
            values[field.name] = blank(field.type)
    return kind(**values)


def convert(value: object, kind: Any, findings: Findings, key: str) -> Any:
    """A value as its type wants it, or a blank of that type and mistakes."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(plain) in (Union, UnionType) and NoneType in get_args(plain):
        return convert(value, Union[tuple(t for t in get_args(plain) if t is not NoneType)], findings, key)  # noqa: UP007
    if _is_struct(plain):
        return read(plain, value, findings, key)
    if get_origin(plain) is tuple and isinstance(value, list):
        item = get_args(plain)[0]
        if not _fits(len(value), inspect.type_info(kind)):
            findings.add(key, f"expected {describe(kind)}, got {len(value)}")
        return tuple(convert(v, item, findings, f"{key}[{i}]") for i, v in enumerate(value))
    if get_origin(plain) is dict and isinstance(value, dict):
        item = get_args(plain)[1]
        return {name: convert(v, item, findings, join(key, name)) for name, v in value.items()}
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        hint = suggestion(value, _choices(inspect.type_info(kind)))
        findings.add(key, f"expected {describe(kind)}, got {findings.shown(key, value)}{hint}")
        return blank(kind)


def from_text(text: str, kind: Any) -> object:
    """An environment variable's text as the TOML value that it stands for: lists are comma-separated. Text
    that does not fit the type is returned as it is, for `read` to refuse."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(plain) is tuple:
        return [from_text(item.strip(), get_args(plain)[0]) for item in text.split(",") if item.strip()]
    if plain in (bool, int, float):
        try:
            return msgspec.convert(text, plain, strict=False)
        except msgspec.ValidationError:
            return text
    return text


def describe(kind: Any) -> str:
    """A type and its limits, in words."""
    return _describe(inspect.type_info(kind))


def blank(kind: Any) -> Any:
    """A stand-in for a value that is wrong."""
    return _blank(inspect.type_info(kind))


def _blank(info: inspect.Type) -> Any:
    match info:
        case inspect.Metadata(type=inner):
            return _blank(inner)
        case inspect.UnionType(types=types):
            return _blank(types[-1])
        case inspect.IntType() | inspect.FloatType():
            return 0
        case inspect.BoolType():
            return False
        case inspect.DateTimeType():
            return datetime.fromtimestamp(0, UTC)
        case inspect.EnumType(cls=cls):
            return next(iter(cls))
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.VarTupleType():
            return ()
        case inspect.DictType():
            return {}
        case _:
            return ""


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _fits(length: int, info: inspect.Type) -> bool:
    match info:
        case inspect.VarTupleType(min_length=least, max_length=most):
            return (least or 0) <= length <= (most or MAX_FILE_BYTES)
        case _:
            return True


def _choices(info: inspect.Type) -> list[str]:
    match info:
        case inspect.LiteralType(values=values):
            return [value for value in values if isinstance(value, str) and value]
        case inspect.EnumType(cls=cls):
            return [str(member.value) for member in cls]
        case inspect.UnionType(types=types):
            return [choice for part in types for choice in _choices(part)]
        case _:
            return []


def _describe(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata(extra_json_schema=dict() as extra, type=inner):
            return f"{_describe(inner)}: {extra['description']}" if "description" in extra else _describe(inner)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _range(info)
        case inspect.FloatType():
            return "a number" + _range(info)
        case inspect.DateTimeType():
            return "a date and time with its zone, such as 2026-07-01T00:00:00+08:00"
        case inspect.LiteralType() | inspect.EnumType():
            words = [shown(choice) for choice in _choices(info)]
            return words[0] if len(words) == 1 else "one of " + ", ".join(words)
        case inspect.VarTupleType(item_type=item, min_length=least, max_length=most):
            size = f"{least} to {most}" if least and most else f"at most {most}" if most else f"at least {least or 0}"
            return (
                f"a list of {size} {_describe_items(item)}" if least or most else f"a list of {_describe_items(item)}"
            )
        case inspect.StructType() | inspect.DictType():
            return "a table"
        case inspect.UnionType(types=types):
            return " or ".join(_describe(part) for part in types)
        case _:
            return "a string"


def _describe_items(info: inspect.Type) -> str:
    match info:
        case inspect.StructType():
            return "tables"
        case inspect.StrType():
            return "strings"
        case inspect.IntType():
            return "whole numbers" + _range(info)
        case _:
            return f"values, each {_describe(info)}"


def _range(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge:.12g} to {info.le:.12g}"
    bounds = ((info.gt, "above"), (info.ge, "of at least"), (info.lt, "below"), (info.le, "of at most"))
    text = " and ".join(f"{words} {bound:.12g}" for bound, words in bounds if bound is not None)
    return f" {text}" if text else ""
