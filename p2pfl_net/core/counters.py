"""What a peer's membership has done since its start, for people who watch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Numbers since the start of this life."""

    pings_sent: int = 0
    pings_received: int = 0
    exchanges_sent: int = 0
    """Joins and exchanges of all that is known."""
    exchanges_received: int = 0
    relays_asked: int = 0
    relays_received: int = 0
    updates_sent: int = 0
    updates_received: int = 0
    probes_failed: int = 0
    """Neither answered directly nor through anybody."""
    probes_saved: int = 0
    """Answered through somebody else only."""
    suspicions: int = 0
    """Begun, by ourselves or by others' word."""
    refutations: int = 0
    """Of suspicions against ourselves."""
    deaths: int = 0
    healed: int = 0
    """Lost addresses at which somebody answered again."""
    pauses: int = 0
    """How often this process stood still."""
