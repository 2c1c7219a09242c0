"""What a person sees of files that somebody has damaged."""

from __future__ import annotations

import pytest

from p2pfl_net import views

IMPOSSIBLE = [10**400, -(10**400), 1e300, float("nan"), float("inf")]


@pytest.mark.parametrize("number", IMPOSSIBLE, ids=["huge", "-huge", "1e300", "nan", "inf"])
def test_impossible_times_are_shown_as_unknown(number: float, capsys: pytest.CaptureFixture[str]) -> None:
    peer = {"id": "ab" * 32, "address": "192.0.2.1:8000", "rtt_ms": number, "last_seen": number}
    value = {"self": peer, "peers": [peer]}
    views.show_peers(value, tags=(), is_old=False, as_json=False)
    views.show_status({"recent_events": [{"time": number, "event": "joined"}]}, as_json=False)
    printed = capsys.readouterr().out
    assert "- heard of" in " ".join(printed.split())
    assert "? joined" in printed
