"""Every bound on what comes from the daemon and on every queue of the client, with what happens at the bound.

The daemon is trusted with bytes of blocks, for it checks them; it is not trusted to be well. A reply beyond a bound
here ends the connection and is counted, so that a damaged or foreign daemon costs hits and nothing else.
Bounds that HELLO's reply states as well hold as the smaller of both.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

KEYS_PER_FRAME_MAX: Final = 65_536
"""Keys of one frame; a longer look-up is split. More in another call: ValueError."""

REPLY_BODY_BYTES_MAX: Final = 16 + 8 * KEYS_PER_FRAME_MAX
"""Body of one reply: a completion that names every block as failed. More: the connection ends."""

FRAME_BODY_BYTES_MAX: Final = 36 * KEYS_PER_FRAME_MAX + 4 * KIB
"""Body of one frame of ours, unless HELLO's reply says less."""

COLD_BODY_BYTES_MAX: Final = 64 * KIB
"""Body of a msgpack reply. More: the connection ends."""

TEXT_CHARACTERS_MAX: Final = 4_096
"""A text out of a reply is cut to this."""

ID_MAX: Final = 2**53 - 1
"""Requests, leases, jobs and regions. More: the connection ends."""

REQUEST_ID_MAX: Final = ID_MAX
"""Request ids, which the caller chooses. More: ValueError."""

KEY_BYTES_MIN: Final = 8
KEY_BYTES_MAX: Final = 32
"""Bytes of a block key."""

NAMESPACES_MAX: Final = 64
"""Namespaces of one HELLO."""

DESCRIPTORS_WAITING_MAX: Final = 4
"""File descriptors received ahead of their frames. More: the connection ends, and all are closed."""

RECEIVE_BYTES: Final = 256 * KIB
"""First size of the receive buffer; it grows to one reply of the largest size."""

SEND_BACKLOG_BYTES_MAX: Final = 16 * MIB
"""Bytes of frames that wait for the daemon to read. More: the call ends as `overloaded`."""

SEND_BACKLOG_SECONDS_MAX: Final = 5.0
"""The oldest of them waits this long. Longer: the connection ends."""

SEND_WAIT_SECONDS: Final = 0.001
"""A call that submits waits this long at most for room in the socket, then leaves the rest to the reader thread."""

COMPLETIONS_WAITING_MAX: Final = 1_048_576
"""Calls in flight and completions that nobody has polled. More: `overloaded` is raised, for poll() is not called."""

EVENTS_WAITING_MAX: Final = 64
"""Events of the connection that nobody has polled. More: the oldest is forgotten."""

KEPT_CHAINS_MAX: Final = 65_536
"""Requests whose chain length at the daemon is remembered. More: the oldest is sent whole again."""

CALL_SECONDS: Final = 5.0
"""Deadline of a call that names none."""

CALL_SECONDS_MAX: Final = 3_600.0
"""Longest deadline of a call. More: ValueError."""

HELLO_SECONDS: Final = 5.0
"""HELLO must be answered within. Later: the connection ends and another is tried."""

REGISTER_SECONDS: Final = 60.0
"""REGISTER must be answered within: the daemon touches every page of a window first."""

LOAD_DEADLINE_MS: Final = 5_000
"""The daemon's own deadline of a LOAD or PREFETCH that names none."""

COMPLETION_GRACE_SECONDS: Final = 2.0
"""A job's deadline is the daemon's. Its completion may be this much later; then the connection is given up."""

HEARTBEAT_MS_MIN: Final = 10
HEARTBEAT_MS_MAX: Final = 600_000
"""What HELLO's reply may ask for. Outside: the connection ends."""

SILENCE_SECONDS_MIN: Final = 2.0
"""A daemon that leaves heartbeats unanswered for its lease time, and at least this long, is given up."""

RECONNECT_SECONDS_MIN: Final = 0.05
RECONNECT_SECONDS_MAX: Final = 2.0
"""Wait between attempts to connect: doubled by each failure, then drawn from the upper half."""

TICK_SECONDS: Final = 0.05
"""How often deadlines are looked at while a call is in flight."""

WINDOW_BYTES_MAX: Final = 2**46
"""Bytes of one window. More: ValueError."""

WINDOW_BLOCKS_MAX: Final = 16 * MIB
"""Rows of one window. More: ValueError."""

WINDOWS_MAX: Final = 64
"""Windows of one session: regions of one connection at the daemon. More: ValueError."""
