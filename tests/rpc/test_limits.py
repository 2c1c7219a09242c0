"""How much each may ask of a peer: buckets of many keys, what is noted, and what the help says of it."""

from __future__ import annotations

import argparse
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_state.manifest import MAX_MANIFEST_BYTES

from p2pfl_net import limitoptions
from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc import opencalls, options, uploads
from p2pfl_net.rpc.download import DISK_RESERVE_BYTES
from p2pfl_net.rpc.limits import ADDRESS_FACTOR, NOTES_A_MINUTE, Limit, Limiter, Limits, Rates
from p2pfl_net.rpc.throttle import MAX_UPLOADS
from p2pfl_net.rpc.uploads import (
    LEAST_BYTES_S,
    MAX_UPLOADS_OF_ADDRESS,
    MAX_UPLOADS_OF_PEER,
)
from p2pfl_net.wire import membership
from p2pfl_net.wire.models import MAX_CHUNK_BYTES

MINUTE_S = 60.0
EASE = 1 + 1e-6
"""For what floating point rounds."""

takes = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5), st.integers(1, 7)), min_size=1, max_size=200)
"""(seconds since the last, key, how many) of each take."""


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# rates ---------------------------------------------------------------------------------------------


@given(takes, st.integers(1, 20), st.integers(1, 4))
def test_nobody_gets_more_than_the_rate_and_one_minute_s_worth(
    asked: list[tuple[float, int, int]], per_minute: int, max_keys: int
) -> None:
    """In any span of time, however many keys there are, and however often one is forgotten."""
    rates = Rates(per_minute, max_keys)
    granted: dict[int, list[tuple[float, int]]] = defaultdict(list)
    now = 0.0
    for pause_s, key, count in asked:
        now += pause_s
        if rates.take(str(key), now, count):
            granted[key].append((now, count))
        assert len(rates) <= max_keys
    for given_to in granted.values():
        for first, (begin, _) in enumerate(given_to):
            total = 0
            for end, count in given_to[first:]:
                total += count
                assert total <= (per_minute + per_minute * (end - begin) / MINUTE_S) * EASE


@given(takes, st.integers(1, 20))
def test_with_room_for_all_it_is_a_token_bucket_for_each(
    asked: list[tuple[float, int, int]], per_minute: int
) -> None:
    rates = Rates(per_minute)
    buckets: dict[int, tuple[float, float]] = {}
    now = 0.0
    for pause_s, key, count in asked:
        now += pause_s
        tokens, at = buckets.get(key, (float(per_minute), now))
        tokens = min(per_minute, tokens + (now - at) * per_minute / MINUTE_S)
        is_close = abs(tokens - count) < 1e-6
        is_granted = rates.take(str(key), now, count)
        assert is_granted == (tokens >= count) or is_close
        buckets[key] = (tokens - count if is_granted else tokens, now)


def test_invented_keys_do_not_give_an_abuser_a_fresh_bucket() -> None:
    rates = Rates(60, max_keys=16)
    while rates.take("abuser", 0.0):
        pass
    for number in range(1000):
        while rates.take(f"invented {number}", 0.0):
            pass
    assert not rates.take("abuser", 0.0)
    assert len(rates) == 16
    assert rates.take("abuser", 1.0), "what it gets in a second"
    assert not rates.take("abuser", 1.0)


def test_who_asks_seldom_is_not_hurt_by_more_peers_than_places() -> None:
    rates = Rates(60, max_keys=16)
    for second in range(200):
        for number in range(20):
            assert rates.take(f"peer {(second * 20 + number) % 1000}", float(second))


# who is told what ----------------------------------------------------------------------------------


def test_an_address_has_ten_times_what_a_peer_has() -> None:
    limiter = Limiter(Limits(calls=3), lambda event, fields: None, Clock())
    peer = PeerId("1" * 64)
    for _ in range(3):
        limiter.check_peer(peer, Limit.CALLS)
    for _ in range(3 * ADDRESS_FACTOR):
        limiter.check_address("10.0.0.1", Limit.CALLS)
    with pytest.raises(PeerFailed, match="more than 3 calls a minute from this peer") as caught:
        limiter.check_peer(peer, Limit.CALLS)
    assert caught.value.kind is FailureKind.BUSY
    with pytest.raises(PeerFailed, match="more than 30 calls a minute from this address"):
        limiter.check_address("10.0.0.1", Limit.CALLS)
    limiter.check_address("10.0.0.2", Limit.CALLS)
    limiter.check_peer(peer, Limit.JOINS)


def test_a_limit_is_noted_once_a_minute_and_not_for_everybody() -> None:
    clock, noted = Clock(), list[dict[str, object]]()
    limiter = Limiter(Limits(joins=1), lambda event, fields: noted.append(fields), clock)

    def exceed(peer: str) -> None:
        for _ in range(30):
            with pytest.raises(PeerFailed):
                limiter.check_peer(PeerId(peer), Limit.JOINS, 2)

    exceed("first")
    assert noted == [{"peer": "first", "limit": "joins"}]
    for number in range(1000):
        exceed(f"{number}")
    assert len(noted) == NOTES_A_MINUTE
    clock.now += MINUTE_S
    exceed("first")
    assert noted[-1] == {"peer": "first", "limit": "joins"}
    assert len(noted) == NOTES_A_MINUTE + 1


def test_who_is_refused_is_noted_once_a_minute_for_each_address() -> None:
    clock, noted = Clock(), list[tuple[str, object]]()
    limiter = Limiter(Limits(), lambda event, fields: noted.append((event, fields["address"])), clock)
    for _ in range(30):
        limiter.refused("10.0.0.1", "this network is private")
    assert noted == [("caller_refused", "10.0.0.1")]
    for number in range(1000):
        limiter.refused(f"10.1.0.{number}", "this network is private")
    assert len(noted) == NOTES_A_MINUTE


# what a person reads -------------------------------------------------------------------------------


def test_the_help_says_what_is_so() -> None:
    parser = argparse.ArgumentParser()
    limitoptions.add_options(parser)
    text = " ".join(parser.format_help().split())
    assert limitoptions.limits_of(parser.parse_args([])) == Limits()
    for said in (
        f"{ADDRESS_FACTOR} times as much",
        f"messages of {options.MAX_MESSAGE_BYTES >> 20} MiB",
        f"metadata of {options.MAX_METADATA_BYTES >> 10} KiB",
        f"chunks of {MAX_CHUNK_BYTES >> 20} MiB",
        f"manifests of {MAX_MANIFEST_BYTES >> 10} KiB",
        f"{membership.MAX_RECORDS:,} records in an exchange and {membership.MAX_UPDATES} in a ping",
        f"{MAX_UPLOADS} uploads at once, {MAX_UPLOADS_OF_PEER} to one peer, {MAX_UPLOADS_OF_ADDRESS} to one",
        f"below {LEAST_BYTES_S >> 10} KiB/s over a minute",
        f"a call has {opencalls.CALL_S:g} s, a handshake {options.HANDSHAKE_S} s",
        f"a connection without calls {options.IDLE_S} s",
        f"{opencalls.MAX_OPEN_CALLS} calls under way, {opencalls.MAX_OPEN_OF_ADDRESS} from one address",
        f"leaves {DISK_RESERVE_BYTES >> 20} MiB of the disk free",
    ):
        assert said in text
    assert uploads.SLOW_S == MINUTE_S


@pytest.mark.parametrize(
    "option",
    ["--max-calls=0", "--max-joins=-1", "--max-records=1.5", "--max-upload=0", "--max-stream-time=nan"],
)
def test_a_limit_that_is_none_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    limitoptions.add_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([option])
    assert "must be a" in capsys.readouterr().err
