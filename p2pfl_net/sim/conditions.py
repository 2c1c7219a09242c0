"""What the simulated wires do to messages. All from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Conditions:
    """How calls travel. Shares are probabilities; times in seconds."""

    latency_s: tuple[float, float] = (0.0005, 0.005)
    """One way: uniform between these."""
    loss: float = 0.0
    """Share of packets that are lost. TCP sends them again: the message comes later."""
    drop: float = 0.0
    """Share of messages that never come: a connection breaks under them."""
    duplicate: float = 0.0
    """Share of requests that arrive twice."""
    reorder: float = 0.0
    """Share of messages that are held back so long that later ones overtake them."""
    one_way: float = 0.0
    """Share of ordered pairs of which one cannot call the other, though the other can call it."""
    skew: float = 0.0
    """Clocks run up to so much too fast or too slow."""


RETRANSMISSION_S = 0.2
"""TCP's least retransmission time-out on Linux; doubled with every further loss (RFC 6298, section 5.5)."""
MAX_RETRANSMISSIONS = 6
HELD_BACK_S = 1.0


class Wires:
    """Draws what happens to each message."""

    def __init__(self, conditions: Conditions, random: Random) -> None:
        self._conditions = conditions
        self._random = random
        low, high = conditions.latency_s
        self._low = low
        self._width = high - low
        self._plain = not (conditions.loss or conditions.drop or conditions.reorder)
        self._salt = random.getrandbits(32)

    def delay(self) -> float | None:
        """How long a message takes; None: it never comes."""
        random = self._random.random
        delay = self._low + self._width * random()
        if self._plain:
            return delay
        conditions = self._conditions
        if conditions.drop and random() < conditions.drop:
            return None
        pause = RETRANSMISSION_S
        for _ in range(MAX_RETRANSMISSIONS):
            if random() >= conditions.loss:
                break
            delay += pause
            pause *= 2
        if conditions.reorder and random() < conditions.reorder:
            delay += HELD_BACK_S * random()
        return delay

    def is_doubled(self) -> bool:
        share = self._conditions.duplicate
        return bool(share) and self._random.random() < share

    def is_deaf(self, caller: int, target: int) -> bool:
        """Whether `caller` can never reach `target`: always the same for the same pair."""
        share = self._conditions.one_way
        if not share:
            return False
        mixed = (caller * 0x9E3779B1 ^ target * 0x85EBCA77 ^ self._salt) & 0xFFFFFFFF
        mixed = (mixed ^ mixed >> 15) * 0x2C1B3C6D & 0xFFFFFFFF
        mixed = (mixed ^ mixed >> 12) * 0x297A2D39 & 0xFFFFFFFF
        return (mixed ^ mixed >> 15) < share * 2**32
