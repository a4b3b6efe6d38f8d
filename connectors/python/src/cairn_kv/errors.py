"""The daemon's table of errors (docs/errors.md) as an enumeration, and the exceptions that carry its rows.

Calls of the engine's path answer with a completion whose `error` is a `Failure`: nothing is raised there, because the
absence of the cache is no fault of a request. Exceptions are for set-up (windows, a wanted connection), where a person
reads them. `CairnError.of` picks the class by the code's family, so a caller may catch as narrowly as it likes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec


class ErrorCode(IntEnum):
    """Code of an error on the wire. A code that this version does not know reads as `INTERNAL`."""

    BAD_MAGIC = 100
    VERSION_UNSUPPORTED = 101
    UNKNOWN_OP = 102
    MALFORMED_FRAME = 103
    FRAME_TOO_LARGE = 104
    HELLO_REQUIRED = 105
    FRAME_TIMEOUT = 106
    TOO_MANY_CONNECTIONS = 107
    OVERLOADED = 108
    SHUTTING_DOWN = 109
    NOT_PERMITTED = 200
    INSTANCE_MISMATCH = 201
    UNKNOWN_NAMESPACE = 202
    TOO_MANY_NAMESPACES = 203
    UNKNOWN_LEASE = 204
    UNKNOWN_REGION = 205
    UNKNOWN_JOB = 206
    BAD_DESCRIPTOR = 207
    WINDOW_NOT_SEALED = 300
    WINDOW_TOO_SMALL = 301
    WINDOW_BUDGET = 302
    WINDOW_MAP = 303
    LAYOUT_MISMATCH = 304
    REGION_UNPROVEN = 305
    OUT_OF_BOUNDS = 306
    RANGE_BUSY = 307
    MEMORY_UNSUPPORTED = 308
    CHAIN_MISMATCH = 400
    PARTIAL_BLOCK = 401
    LEDGER_FULL = 402
    TOO_MANY_KEYS = 403
    BLOCK_NOT_READABLE = 404
    CHECKSUM_MISMATCH = 405
    STALE_GENERATION = 406
    SHARD_OUT_OF_RANGE = 407
    DEADLINE_EXCEEDED = 408
    CANCELLED = 409
    TIER_UNAVAILABLE = 410
    JOBS_IN_FLIGHT = 411
    PIN_BUDGET = 412
    DEVICE_FAILED = 413
    CONFIG_INVALID = 500
    RESTART_NEEDED = 501
    DIRECTORY_LOCKED = 502
    DIRECTORY_UNSAFE = 503
    POOL_TOO_LARGE = 504
    FORMAT_UNSUPPORTED = 505
    UNAUTHORIZED = 506
    NOT_FOUND = 507
    BAD_REQUEST = 508
    ADDON_MISSING = 509
    UNAVAILABLE = 510
    BODY_TOO_LARGE = 511
    CROSS_SITE = 512
    DISK_UNUSABLE = 513
    INTERNAL = 599
    ENGINE_STATE_MALFORMED = 600

    @property
    def wire_name(self) -> str:
        """Name as the daemon writes it, in camel case."""
        head, *rest = self.name.lower().split("_")
        return head + "".join(word.capitalize() for word in rest)

    @property
    def retryable(self) -> bool:
        """Whether the same call can succeed later without a change."""
        return self in _RETRYABLE

    @classmethod
    def read(cls, code: int) -> ErrorCode:
        """Return the row of a code, `INTERNAL` for one that is not in the table."""
        return _BY_CODE.get(code, cls.INTERNAL)


_BY_CODE: Final = {int(code): code for code in ErrorCode}
_RETRYABLE: Final = frozenset(
    {
        ErrorCode.FRAME_TIMEOUT,
        ErrorCode.TOO_MANY_CONNECTIONS,
        ErrorCode.OVERLOADED,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.UNKNOWN_LEASE,
        ErrorCode.WINDOW_MAP,
        ErrorCode.LEDGER_FULL,
        ErrorCode.BLOCK_NOT_READABLE,
        ErrorCode.STALE_GENERATION,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.CANCELLED,
        ErrorCode.TIER_UNAVAILABLE,
        ErrorCode.JOBS_IN_FLIGHT,
        ErrorCode.PIN_BUDGET,
        ErrorCode.DEVICE_FAILED,
        ErrorCode.UNAVAILABLE,
        ErrorCode.INTERNAL,
    }
)


class Failure(msgspec.Struct, frozen=True, gc=False):
    """Why a call failed. `detail` is a number whose meaning the code tells (0: none)."""

    code: ErrorCode
    message: str
    action: str = ""
    detail: int = 0

    @property
    def retryable(self) -> bool:
        """Whether the same call can succeed later without a change."""
        return self.code.retryable

    def __str__(self) -> str:
        return f"{self.code.wire_name}: {self.message}"


class CairnError(Exception):
    """An error out of the daemon's table, raised by calls of set-up."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure

    @property
    def code(self) -> ErrorCode:
        """Row of the table."""
        return self.failure.code

    @property
    def retryable(self) -> bool:
        """Whether the same call can succeed later without a change."""
        return self.failure.retryable

    @staticmethod
    def of(failure: Failure) -> CairnError:
        """Return the exception of the code's family."""
        exact = _EXACT.get(failure.code)
        return (exact or _FAMILIES.get(failure.code // 100, CairnError))(failure)


class FrameError(CairnError):
    """1xx: the frame, or the connection it came over."""


class SessionError(CairnError):
    """2xx: who is asking, and what was named by handle, lease, region or job."""


class WindowError(CairnError):
    """3xx: shared memory and its layout."""


class BlockError(CairnError):
    """4xx: blocks, tiers, jobs."""


class Unavailable(CairnError):
    """No daemon, or none any more."""


class DeadlineExceeded(CairnError):
    """The daemon did not answer in time."""


_FAMILIES: Final[dict[int, type[CairnError]]] = {1: FrameError, 2: SessionError, 3: WindowError, 4: BlockError}
_EXACT: Final[dict[ErrorCode, type[CairnError]]] = {
    ErrorCode.UNAVAILABLE: Unavailable,
    ErrorCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


class MalformedReplyError(Exception):
    """The daemon sent what the protocol does not allow. Ends the connection; never leaves the reader thread."""
