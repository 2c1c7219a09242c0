"""Multicasts what no peer would announce: `python -m tests.rpc.lying_announcer IP`, until it is killed.

It says `lied` after the first round of lies, and goes on with others: the seed is printed.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import struct
import sys
import threading
from collections.abc import Iterator

from p2pfl_net.wire.announcement import SERVICE

GROUP = ("224.0.0.251", 5353)
PTR, A, TXT, AAAA, SRV = 12, 1, 16, 28, 33
NAMES = 40
"""New ones in each round."""
PAUSE_S = 0.1


def name(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


TYPE = name(*(label.encode() for label in SERVICE.strip(".").split(".")))


def record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, 4500, len(data)) + data


def response(*records: bytes) -> bytes:
    return struct.pack("!6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def texts(**values: bytes) -> bytes:
    pairs = (key.encode() + b"=" + value for key, value in values.items())
    return b"".join(bytes([len(pair)]) + pair for pair in pairs)


def service(label: bytes, host: bytes, text: bytes, port: int, *literals: str) -> bytes:
    """All the records of one service in one packet."""
    owner = bytes([len(label)]) + label + TYPE
    addresses = [
        record(host, AAAA, socket.inet_pton(socket.AF_INET6, literal))
        if ":" in literal
        else record(host, A, socket.inet_aton(literal))
        for literal in literals
    ]
    return response(
        record(TYPE, PTR, owner),
        record(owner, SRV, struct.pack("!3H", 0, 0, port) + host),
        record(owner, TXT, text),
        *addresses,
    )


def lies(draw: random.Random) -> Iterator[bytes]:
    """One round of packets."""
    host = name(b"liar", b"local")
    for _ in range(NAMES):
        peer_id = draw.randbytes(32).hex().encode()
        label = peer_id[:16]
        good = texts(id=peer_id, protocol=b"2-2")
        owner = bytes([len(label)]) + label + TYPE
        yield draw.choice(
            [
                service(
                    label, host, texts(id=draw.randbytes(32).hex().encode(), protocol=b"2-2"), 1, "10.77.0.9"
                ),
                service(label, host, texts(id=peer_id, protocol=b"8-9"), 1, "10.77.0.9"),
                service(label, host, draw.randbytes(200), 1, "10.77.0.9"),
                service(label, host, good, 0, "10.77.0.9"),
                service(label, host, good, 1, "127.0.0.1", "224.0.0.1", "0.0.0.0", "fe80::1", "::1", "::"),
                # a host whose name grows when it is decoded, and that has to be asked for
                service(label, name(b"\xff" * 63, b"local"), good, 1),
                service(label, name(*[b"x" * 63] * 3, b"local"), good, 1),
                # nobody says where it is
                response(record(TYPE, PTR, owner)),
                # names that are none of a peer
                service(b"a.b", host, good, 1, "10.77.0.9"),
                service(b"\0\n\xff", host, good, 1, "10.77.0.9"),
                response(record(TYPE, PTR, name(b"elsewhere"))),
                response(record(TYPE, PTR, b"\0")),
                # damaged packets
                draw.randbytes(draw.randrange(600)),
                response(record(TYPE, PTR, b"\xc0\x0c")),
                struct.pack("!6H", 0, 0x8400, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF) + draw.randbytes(100),
                service(label, host, good, 1, "10.77.0.9")[: draw.randrange(12, 100)],
            ]
        )
    # a peer that is not there, and does as if it were
    ghost = b"0" * 64
    yield service(ghost[:16], host, texts(id=ghost, protocol=b"2-2"), draw.randrange(1, 65536), "10.77.0.99")


def main() -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}, process {os.getpid()}", flush=True)
    draw = random.Random(seed)
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
    pause = threading.Event()
    while True:
        for packet in lies(draw):
            out.sendto(packet, GROUP)
        print("lied", flush=True)
        pause.wait(PAUSE_S)


if __name__ == "__main__":
    main()
