"""The constants of membership and collection, each with its source or the word guess."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Params:
    """Times in seconds. The defaults are those of a LAN; the simulator varies them."""

    probe_interval_s: float = 1.0
    """SWIM's protocol period: one peer is probed in each (Das et al. 2002, section 3.1: about 1 s)."""
    probe_timeout_s: float = 2.0
    """How long one ping may take. A guess: far above a loaded machine's scheduling delay."""
    gossip_interval_s: float = 0.4
    """Period of the extra gossip while there is news. Half the rate of memberlist's LAN default, whose
    datagrams cost a tenth of a call."""
    gossip_fan_out: int = 2
    """Peers that each gossip goes to (memberlist's `GossipNodes` is 3, for datagrams that get lost)."""
    max_gossip_pending: int = 3
    """Gossip waits while so many of its calls are unanswered: on a saturated machine it must not add to
    what makes probes late, or suspicion breeds news and news suspicion."""
    retransmit_factor: int = 3
    """λ: each update is sent at most λ·⌈log₂(n+1)⌉ times (SWIM, section 4.1; memberlist uses 4·log₁₀)."""
    max_updates: int = 64
    """Updates in one message: bounds a ping to some 8 KB."""
    suspicion_factor: float = 3.0
    """A suspect has factor · max(1, log₁₀ n) periods to refute (memberlist uses 4 on a LAN)."""
    tombstone_s: float = 60.0
    """How long the dead are remembered, so that old news cannot revive them. A guess: hundreds of
    gossip intervals."""
    max_peers: int = 20_000
    """Bound of the table, tombstones included."""
    max_addresses: int = 8
    """Candidate addresses of one peer."""
    join_timeout_s: float = 3.0
    """One attempt at a boot peer; a full state of thousands of peers takes tens of milliseconds."""
    boot_backoff_s: float = 0.1
    """First pause between attempts at the boot peers; doubles up to `boot_backoff_max_s`."""
    boot_backoff_max_s: float = 2.0
    remembered_after_s: float = 3.0
    """How long boot peers are asked alone before peers of an earlier life are asked too. A guess: longer than
    the daemons of a lab need that start together."""
    remembered_timeout_s: float = 5.0
    """How long a peer without a boot peer tries those of its earlier life before it stands alone."""
    max_dial_backs: int = 8
    """Dial-backs under way: fewer than there are threads for calls, for each may wait for a black hole."""
    candidate_offers: int = 10
    """Probes that ask to have our unconfirmed addresses dialled, after the start and after each doubt
    about us. A guess: enough that lost messages never leave a peer without its best address."""
    goodbye_fan_out: int = 5
    """Peers told directly of a clean stop; gossip tells the rest. A guess."""
    goodbye_timeout_s: float = 0.8
    stall_s: float = 2.0
    """A fetch without a byte for this long is silent, unless its chunks take longer: another peer is asked
    beside it. A guess: ten times the longest pause seen between chunks on a saturated machine."""
    max_fetches: int = 32
    """Fetches of a round that run at once: each has a thread."""
    busy_retry_s: float = 0.15
    """Pause before a peer that was too busy to serve is asked again when no other is left."""
    max_refusals_noted: int = 1000

    def retransmissions(self, live: int) -> int:
        """How often one update is sent in a network of `live` peers."""
        return self.retransmit_factor * math.ceil(math.log2(live + 2))

    def suspicion_s(self, live: int) -> float:
        """How long a suspect has to refute in a network of `live` peers."""
        return self.suspicion_factor * max(1.0, math.log10(live + 1)) * self.probe_interval_s
