"""A warm call is short: few functions in few files, the network near the top, nothing opened."""

from __future__ import annotations

from tests.call_path import CALL, watch_call


def test_a_warm_call_is_short() -> None:
    figures = watch_call(**CALL).figures()
    assert figures["network calls"] == 4
    assert figures["functions"] <= 80
    assert figures["files"] <= 20
    assert figures["frames above the network"] <= 8
    assert figures["opened"] == 0
