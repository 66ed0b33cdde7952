"""What a script gets of the shared text: every function that it calls, and none that it doesn't."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from gateway.ledger.scripts import Script

FOLDER = files("gateway.ledger")
SHARED = (FOLDER / "slots.lua").read_text()
FUNCTIONS = re.findall(r"^local function (\w+)", SHARED, re.MULTILINE)
NAMES = ("adopt", "commit", "detach", "doubt", "end", "release", "replace", "reserve", "settle", "snapshot", "start")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_called_was_defined_before_and_nothing_else_is(name: str) -> None:
    text = re.sub(r"--.*", "", Script(name).text)
    for function in FUNCTIONS:
        places = [found.start() for found in re.finditer(rf"\b{function}\b", text)]
        defined = text.find(f"local function {function}(")
        if places:
            assert places[0] == defined + len("local function "), f"{function} is used before it is defined"
            assert len(places) > 1, f"{function} is not used"


def test_a_script_without_a_session_gets_nothing() -> None:
    assert Script("claim", shared=False).text == (FOLDER / "claim.lua").read_text()
