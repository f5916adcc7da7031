"""The examples do what they say."""

from __future__ import annotations

import asyncio

from examples import app


def test_the_app_serves_each_order() -> None:
    heart, owl, face, boring = asyncio.run(app.main())
    assert heart == "red heart, flat style: 128x128, seed 7"
    assert "steps=99 is outside" in owl
    assert face == "grinning face, 3d style: 128x128, seed 7"
    assert boring == "a boring picture: stopped at 12%"
