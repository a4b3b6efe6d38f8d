"""Client of cairnd, the per-node daemon that owns every KV-cache block of an inference node (docs/protocol.md).

    from cairn_kv import NamespaceDescriptor, Session

`Session` is the whole surface: asynchronous calls (`submit_*`, `poll`), blocking calls, windows. Every call is bounded
in time, and the daemon's absence, death or slowness is a miss, never an exception in the engine's path. Nothing here
imports an engine or a tensor library.
"""

from cairn_kv.blocking import StoreResult
from cairn_kv.client import Session, default_socket
from cairn_kv.completions import (
    CancelDone,
    Completion,
    Connected,
    Disconnected,
    EndRequestDone,
    FailedBlock,
    FillRefused,
    FlushDone,
    HintDone,
    LoadDone,
    LookupDone,
    PrefetchDone,
    PrefetchOffered,
    PrefetchOutcome,
    Proof,
    ProveDone,
    StatsDone,
    StoreDone,
    StoreOffered,
)
from cairn_kv.errors import (
    BlockError,
    CairnError,
    DeadlineExceeded,
    ErrorCode,
    Failure,
    FrameError,
    SessionError,
    Unavailable,
    WindowError,
)
from cairn_kv.keys import Keys, Rows
from cairn_kv.link import Statistics
from cairn_kv.protocol import DaemonLimits, NamespaceDescriptor, StoreStatus
from cairn_kv.window import LayoutAdapter, Window, layout_pattern

__all__ = [
    "BlockError",
    "CairnError",
    "CancelDone",
    "Completion",
    "Connected",
    "DaemonLimits",
    "DeadlineExceeded",
    "Disconnected",
    "EndRequestDone",
    "ErrorCode",
    "FailedBlock",
    "Failure",
    "FillRefused",
    "FlushDone",
    "FrameError",
    "HintDone",
    "Keys",
    "LayoutAdapter",
    "LoadDone",
    "LookupDone",
    "NamespaceDescriptor",
    "PrefetchDone",
    "PrefetchOffered",
    "PrefetchOutcome",
    "Proof",
    "ProveDone",
    "Rows",
    "Session",
    "SessionError",
    "Statistics",
    "StatsDone",
    "StoreDone",
    "StoreOffered",
    "StoreResult",
    "StoreStatus",
    "Unavailable",
    "Window",
    "WindowError",
    "default_socket",
    "layout_pattern",
]
