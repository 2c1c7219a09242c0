"""What `p2pfl-net serve` bears of others, as a person types it."""

from __future__ import annotations

import argparse

from p2pfl_net.rpc.limits import ADDRESS_FACTOR, Limits
from p2pfl_net.usage import positive, whole

DEFAULTS = Limits()

ABOUT = f"""Who asks for more is refused with one line, others go on. Counts are of one peer in a minute: so
many at once, and as many again in each minute; an address (of IPv6 a /64 network), where many peers may live, has
{ADDRESS_FACTOR} times as much. Fixed: messages of 16 MiB, metadata of 8 KiB, chunks of 2 MiB, manifests of
256 KiB, 20,000 records in an exchange and 128 in a ping; 16 uploads at once, 4 to one peer, 12 to one address but
this machine's own, and a reader below 16 KiB/s over a minute loses its place when another wants it; a call has
10 s, a handshake 10 s, a connection without calls 600 s; 192 calls under way, 96 from one address, then the oldest
ends. A model is fetched only where it leaves 64 MiB of the disk free. How many connections one address opens
cannot be bounded here (gRPC tells nobody of them): that is for a firewall."""  # noqa: E501


def add_options(serve: argparse.ArgumentParser) -> None:
    add = serve.add_argument_group("limits against abuse", ABOUT).add_argument
    add("--max-upload", type=positive, metavar="MB/S", help="of all uploads together (no limit)")
    add(
        "--max-stream-time",
        type=positive,
        default=DEFAULTS.max_stream_s,
        metavar="S",
        help=f"end an upload that lasts longer; who fetches goes on from there ({DEFAULTS.max_stream_s:g})",
    )
    for name, text in (
        ("calls", "calls of any kind but streams"),
        ("streams", "begun downloads of a model"),
        ("joins", "joins and exchanges of all that is known"),
        ("records", "records of peers, in all its messages"),
        ("requests", "requests to be approved"),
        ("accusations", "proofs against other peers"),
    ):
        default = getattr(DEFAULTS, name)
        add(f"--max-{name}", type=whole, default=default, metavar="N", help=f"{text}, a minute ({default})")
    add(
        "--max-connections",
        type=whole,
        default=DEFAULTS.max_connections,
        metavar="N",
        help=f"open at once, of all callers together ({DEFAULTS.max_connections})",
    )


def limits_of(options: argparse.Namespace) -> Limits:
    return Limits(
        calls=options.max_calls,
        streams=options.max_streams,
        joins=options.max_joins,
        records=options.max_records,
        requests=options.max_requests,
        accusations=options.max_accusations,
        max_connections=options.max_connections,
        max_upload_bytes_s=None if options.max_upload is None else options.max_upload * 1e6,
        max_stream_s=options.max_stream_time,
    )
