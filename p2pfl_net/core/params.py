"""The constants of membership and collection, each with its source or the word guess."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Params:
    """Times in seconds. The defaults are those of a LAN; the simulator varies them."""

    # failure detection
    probe_interval_s: float = 1.0
    """SWIM's protocol period: one peer is probed in each (Das et al. 2002, section 3.1: about 1 s)."""
    probe_timeout_s: float = 1.0
    """How long a direct ping may take before others are asked to try. A guess: above a loaded machine's
    scheduling delay (memberlist: 0.5 s on a LAN)."""
    relay_timeout_s: float = 1.0
    """How long they may take, and a late answer to the direct ping too."""
    relay_ping_s: float = 0.7
    """How long a helper's own ping may take: it answers in time also when it fails (Lifeguard: 80 %)."""
    overdue_s: float = 1.0
    """Each peer calls each other once in a round; who is so much later than that is probed at once. A guess:
    a period, for a round is that much longer with one more peer in it."""
    relays: int = 3
    """Helpers asked (SWIM's k; memberlist's `IndirectChecks`)."""
    max_probes: int = 16
    """Probes under way beyond which no suspect gets a last chance: where halves of a network meet again, each
    suspects all of the other. A guess."""
    max_relays: int = 8
    """Pings for others under way: each holds a thread for calls."""
    suspicion_factor: float = 3.0
    """A suspect has at least factor · max(1, log₁₀ n) periods to refute (memberlist: 4 on a LAN)."""
    suspicion_max_factor: float = 6.0
    """A suspicion that nobody shares waits so many times longer (Lifeguard's β)."""
    confirmations: int = 3
    """Who agree, for the shortest time-out (Lifeguard's K)."""
    refused_factor: float = 1.0
    """In place of `suspicion_factor` where the suspect's machine refused the connection, so that nobody
    is left there to refute. A guess: longer than news of a restart takes."""
    max_health: int = 4
    """Bound of the local health multiplier (memberlist: 8): slander may slow a peer, but not that much."""
    pause_s: float = 1.5
    """A tick so late means that this process stood still, and that it must not judge others by it."""

    # dissemination
    gossip_interval_s: float = 0.4
    """Period of the extra gossip while there is news. Half the rate of memberlist's LAN default, whose
    datagrams cost a tenth of a call."""
    gossip_fan_out: int = 2
    """Peers that each gossip goes to (memberlist's `GossipNodes` is 3, for datagrams that get lost)."""
    gossip_burst: int = 14
    """Extra gossip that may come at once when there was none for a while: a suspicion, and the death that
    comes of it, reach a thousand peers."""
    gossip_rate: float = 0.5
    """Extra gossip a second in the long run, half of the probes: in a network that never rests, what a
    peer sends stays nearly the same however large it is."""
    gossip_defence: int = 4
    """Of these, what a peer may always send that refutes a suspicion against itself: it has little time. A
    guess: seconds sooner than with its probes alone."""
    max_gossip_pending: int = 3
    """Gossip waits while so many of its calls are unanswered: on a saturated machine it must not add to
    what makes probes late, or suspicion breeds news and news suspicion."""
    retransmit_margin: float = 10.0
    """c: each peer sends an update ln n + c times, and it reaches all n with the probability e^(-e^-c), here
    0.99995 (Kermarrec, Massoulié, Ganesh: Probabilistic Reliable Dissemination in Large-Scale Systems, 2003);
    the exchanges tell who is left. SWIM, 4.1, has a multiple of log n."""
    max_updates: int = 64
    """Updates in one message: bounds a ping to some 8 KB."""
    sync_interval_s: float = 30.0
    """Period of the exchange of all that is known with one random peer (memberlist's `PushPullInterval`)."""
    first_sync_s: float = 3.0
    """When a newcomer asks once more, about: what spread while it joined may have passed it by. A guess:
    longer than many peers need that start together."""
    sync_scale_from: int = 32
    """In larger networks it is rarer: each doubling adds one interval (memberlist's `pushPullScale`)."""

    # another process with our key
    twin_records: int = 3
    """Records of ourselves, each newer than all that we have said, that show it: of an earlier life, one or
    two can reach us before ours reaches everybody."""
    twin_step: int = 1000
    """How far the second of them is outbid. A guess: more often than any life renews its record while one
    version of it spreads, so that only who lives goes beyond."""
    twin_pause_s: float = 30.0
    """Once it is known, how long the other's record stands before ours takes its place: that is news for
    everybody each time, and helps nobody. A guess."""
    twin_notice_s: float = 600.0
    """How long until the operator is told again. A guess."""

    # the table
    tombstone_s: float = 60.0
    """How long the dead are remembered, so that old news cannot revive them. A guess: hundreds of
    gossip intervals."""
    max_peers: int = 20_000
    """Bound of the table, tombstones included."""
    max_hearsay: int = 2000
    """Peers in the table that one machine told us of and that we have not called yet: a tenth of the bound.
    Three quarters of it for the machines that the operator named, which tell us of a whole network."""
    max_trusted_sources: int = 64
    max_addresses: int = 8
    """Candidate addresses of one peer."""
    collected_hearsay: int = 2
    """Of each source's unverified peers, this many times the fan-out are candidates for a round."""

    # eviction
    max_evicted: int = 1024
    """Proofs against peers that are kept; the oldest are forgotten, of peers that we have never called before
    others. A guess: half a kilobyte each."""
    tell_again_s: float = 60.0
    """Who goes on speaking of an evicted peer is told again so often. A guess."""

    # joining and healing
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
    heal_interval_s: float = 5.0
    """First pause before a lost peer's address is tried again; doubles up to `heal_max_s`. A guess."""
    heal_max_s: float = 300.0
    heal_attempts: float = 3.0
    """Attempts at one lost address that all who lost it make together each time (Serf: one in a while, by the
    share of the failed). A guess: so that one gets through although others fail by chance."""
    heal_least_s: float = 1.0
    """Least pause between two such attempts: no more than one probe's worth of calls."""
    max_lost: int = 32
    """Addresses of lost peers that are tried again: enough that some of a lost half are still there."""
    lost_for_s: float = 86_400.0
    """How long (Serf's `reconnect_timeout`)."""

    # addresses and goodbyes
    max_dial_backs: int = 8
    """Dial-backs under way: fewer than there are threads for calls, for each may wait for a black hole."""
    candidate_offers: int = 10
    """Probes that ask to have our unconfirmed addresses dialled, after the start and after each doubt
    about us. A guess: enough that lost messages never leave a peer without its best address."""
    goodbye_fan_out: int = 5
    """Peers told directly of a clean stop; gossip tells the rest. A guess."""
    goodbye_timeout_s: float = 0.8

    # collection
    stall_s: float = 2.0
    """A fetch without a byte for this long is silent, unless its chunks take longer: another peer is asked
    beside it. A guess: ten times the longest pause seen between chunks on a saturated machine."""
    max_fetches: int = 32
    """Fetches of a round that run at once: each has a thread."""
    busy_retry_s: float = 0.15
    """Pause before a peer that was too busy to serve is asked again when no other is left."""
    max_refusals_noted: int = 1000
    offences_in_a_row: int = 3
    """Wrong models of a peer, with no good one between, for which it is put aside. A guess: one may be an
    accident, such as a program of another version that is replaced at once."""
    aside_s: float = 600.0
    """How long at first, doubled each further time in the row. A guess: hundreds of rounds."""
    forbidden_s: float = 2.0
    """How long a peer that refuses us its model is not asked, at first; doubled with each refusal in a row. A
    guess: a few rounds of a quick task."""
    forbidden_max_s: float = 20.0
    """A guess: who was approved meanwhile does not wait longer."""
    aside_max_s: float = 86_400.0
    """A guess: who mends its program is heard again a day later at the latest."""

    @property
    def probe_s(self) -> float:
        """How long a probe takes at most, when this peer is well."""
        return self.probe_timeout_s + self.relay_timeout_s

    def retransmissions(self, live: int) -> int:
        """How often one update is sent in a network of `live` peers."""
        return math.ceil(math.log(live + 1) + self.retransmit_margin)

    def suspicion_s(self, live: int) -> float:
        """How long a suspect has at least to refute in a network of `live` peers."""
        return self.suspicion_factor * self._spread_s(live)

    def refused_s(self, live: int) -> float:
        """The same for one whose machine refuses connections."""
        return self.refused_factor * self._spread_s(live)

    def heal_spacing_s(self, live: int) -> float:
        """The pause between two looks for lost peers to try: rarer where many share the attempts."""
        return self.heal_least_s * max(1.0, math.log10(live + 1))

    def sync_s(self, live: int) -> float:
        """The period of full-state exchanges in a network of `live` peers."""
        if live <= self.sync_scale_from:
            return self.sync_interval_s
        return self.sync_interval_s * (1 + math.ceil(math.log2(live / self.sync_scale_from)))

    def _spread_s(self, live: int) -> float:
        """What news needs to reach everybody grows with the logarithm."""
        return self.probe_interval_s * max(1.0, math.log10(live + 1))
