"""A gateway as it runs finds what was attached past it."""

from __future__ import annotations

import json
import re

from tests.admission.world import until
from tests.serve.conftest import Serving


async def test_a_product_attached_past_the_gateway_takes_the_last_place(serving: Serving) -> None:
    serving.configure(sweep_sessions_per_second=50)
    process = await serving.start()
    await serving.line(process, "listening")
    assert [(await serving.attach(f"ally-{n}"))[0] for n in (1, 2)] == [200, 200]

    url = f"{serving.world.platform.url}/live/sessions/s1/products"
    async with serving.world.http.post(url, json={"product_id": "ally-9"}) as answer:
        assert answer.status == 200
    said = await serving.line(process, "attached_past_the_gateway")
    assert (said["level"], said["session_id"], said["product_ids"]) == ("warning", "s1", ["ally-9"])

    status, body = await serving.attach("ally-3")
    assert status == 403
    refused = json.loads(body)
    assert (refused["reason"], refused["used"]) == ("foreign_cap_reached", 3)
    assert [slot["product_id"] for slot in refused["slots"]] == ["ally-1", "ally-2", "ally-9"]
    assert serving.world.listed() == {"ally-1", "ally-2", "ally-9"}
    text = (await serving.admin("/metrics"))[1].decode()
    assert re.search(r'^attachgate_drift_total{kind="attached"} 1\.0$', text, re.MULTILINE)

    serving.world.platform.platform.store.detach("s1", "ally-9", 0.0)

    async def given_back() -> bool:
        return await serving.world.used() == {"ally-1", "ally-2"}

    await until(given_back)
    assert (await serving.attach("ally-3"))[0] == 200
    process.terminate()
    assert await serving.ended(process) == 0
