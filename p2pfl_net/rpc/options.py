"""gRPC settings of both ends, each with its reason.

Keys: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html; the interplay of keep-alive
settings: https://github.com/grpc/grpc/blob/master/doc/keepalive.md
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 16 << 20
"""Bounds one message, so a full state of `Params.max_peers`; models come in chunks far below it."""

MAX_METADATA_BYTES = 8 << 10
HANDSHAKE_S = 10
"""How long a caller may take for the handshake of TLS and the first words of HTTP/2, which loopback does in
milliseconds and a link over the ocean in one second."""
IDLE_S = 600
"""A connection without a call for so long is closed. A guess: whoever calls more rarely has so many others to
call that it keeps none (`Connections`)."""
MAX_STREAMS_OF_CONNECTION = 64
"""Calls at once over one connection: four times what a peer's pool of calls makes."""

Option = tuple[str, int]

SERVER_OPTIONS: tuple[Option, ...] = (
    ("grpc.so_reuseport", 0),  # two daemons on one port must collide, not share it
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),  # else some calls beyond the bound get through
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
    ("grpc.max_connection_idle_ms", IDLE_S * 1000),
    ("grpc.max_concurrent_streams", MAX_STREAMS_OF_CONNECTION),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),  # never answer a keep-alive by "too many pings"
    ("grpc.http2.bdp_probe", 0),
)

MAX_CONNECTIONS_OPTION = "grpc.max_allowed_incoming_connections"
"""Of the server: a connection beyond is closed at once, those that are open live on."""

_CHANNEL_OPTIONS: tuple[Option, ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # peers talk to each other, whatever http_proxy says
    ("grpc.enable_retries", 0),  # the core decides what is tried again
    ("grpc.initial_reconnect_backoff_ms", 100),  # a restarted peer is back at once
    # Despite its name: how long one attempt to connect may take. Less than a probe, so that a probe that
    # fails tells a peer that cannot be reached from one that is slow.
    ("grpc.min_reconnect_backoff_ms", 1_500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Fixed windows: the bandwidth probe lets a receiver buffer hundreds of megabytes on a fast link.
    ("grpc.http2.bdp_probe", 0),
)

MEMBERSHIP_OPTIONS: tuple[Option, ...] = (
    *_CHANNEL_OPTIONS,
    ("grpc.keepalive_time_ms", 60_000),  # the protocol's own pings keep busy channels alive
    ("grpc.keepalive_timeout_ms", 10_000),
)

TRANSFER_OPTIONS: tuple[Option, ...] = (
    *_CHANNEL_OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: a ping never queues behind a model
    ("grpc.http2.lookahead_bytes", 4 << 20),  # in flight: 320 Mbit/s over a 100 ms link
    ("grpc.http2.max_frame_size", 4 << 20),  # the default of 16 KiB costs a third of the throughput
    ("grpc.keepalive_time_ms", 10_000),  # a frozen server is noticed in mid-stream
    ("grpc.keepalive_timeout_ms", 10_000),
)
