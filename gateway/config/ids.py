"""Which regular expressions may say what an id looks like.

An id becomes a part of Redis keys, of stream entries and of upstream paths, and the gateway compares it byte
by byte. So a pattern must be *unable* to match anything that one of these reads otherwise (a separator, a
space, a percent sign, a non-ASCII look-alike) or that has no bound. Whether a regular expression in general
can is hard to tell; of a small part of the language it is easy: literals, classes such as [A-Za-z0-9_-],
groups, alternatives, and repetitions with a bound. Everything else is refused. That part is enough for ids,
and it can't be made to backtrack for long either.
"""

from __future__ import annotations

import re
import warnings

MAX_ID_LENGTH = 255
FORBIDDEN = frozenset(chr(code) for code in range(128) if code <= 0x20 or code == 0x7F) | frozenset("/|%")

_TOKEN = re.compile(
    r"(?P<class>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<escape>\\.)|(?P<open>\((?:\?:)?)|(?P<close>\))"
    r"|(?P<bounded>\{[0-9]*,?[0-9]+\}|\?)|(?P<unbounded>\{[0-9]*,\}|[*+])|(?P<anchor>[\^$])|(?P<bar>\|)|(?P<literal>.)",
    re.DOTALL,
)


def problem(pattern: str) -> str | None:
    """What is wrong with a pattern for ids, or None. It is always used with `fullmatch`."""
    if not pattern.isascii():
        return "holds characters that are not ASCII; ids are ASCII"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        return f"is not a regular expression that can be used: {error}"
    previous = ""
    for token in _TOKEN.finditer(pattern):
        if fault := _token_fault(token.lastgroup or "", token[0], previous):
            return fault
        previous = token.lastgroup or ""
    if compiled.fullmatch(""):
        return "matches the empty string; an id has at least one character"
    longest = _longest(pattern)
    if longest > MAX_ID_LENGTH:
        return f"allows ids of {longest} characters; at most {MAX_ID_LENGTH} are possible"
    return None


def _token_fault(kind: str, text: str, previous: str) -> str | None:
    """Why this part of a pattern can't stand, or None."""
    match kind:
        case "unbounded":
            return f"repeats without a bound ({text}); give one, for instance {{1,128}}"
        case "bounded" if previous == "open":
            return "uses an extension (?…); only (…) and (?:…) are understood"
        case "bounded" if previous == "close" and text != "?":
            return f"repeats a group ({text}); repeat a character or a class instead"
        case "bounded" if previous == "bounded":
            return f"repeats a repetition ({text}); leave one out"
        case "class" if text.startswith("[^"):
            return f"uses {text}, which matches all but a few characters; name those that an id may have"
        case "class" | "escape" if re.search(r"\\[A-Za-z0-9]", text):
            return f"uses {text}, which matches more than ASCII; write a class such as [0-9] or [A-Za-z0-9_]"
        case "literal" if text == ".":
            return "uses ., which matches any character; write a class such as [A-Za-z0-9_], or \\. for a dot"
        case "class" | "escape" | "literal":
            atom = re.compile(re.escape(text) if kind == "literal" else text)
            if bad := sorted(char for char in FORBIDDEN if atom.fullmatch(char)):
                return f"can match {bad[0]!r}; ids can't hold white space, control characters, '/', '|' or '%'"
    return None


def _longest(pattern: str) -> int:
    """The length of the longest id. Only for a pattern without faults: so no group is repeated."""
    branches = [[0]]
    for token in _TOKEN.finditer(pattern):
        match token.lastgroup:
            case "open":
                branches.append([0])
            case "bar":
                branches[-1].append(0)
            case "close":
                inner = max(branches.pop())
                branches[-1][-1] += inner
            case "bounded" if token[0] != "?":
                branches[-1][-1] += int(token[0].strip("{}").rpartition(",")[2]) - 1
            case "class" | "escape" | "literal":
                branches[-1][-1] += 1
    return max(branches[-1])
