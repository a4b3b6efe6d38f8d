"""What comes back from the daemon, as values.

`Session.poll()` gives a list of these. Each carries the tag that its call returned, and `error`, which is None when all
went well: a completion with an error is the miss that the call stands for, and its other fields say so (no hit, every
block failed). Nothing here refers to the session, and all of it is immutable.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec

from cairn_kv.errors import CairnError, ErrorCode, Failure
from cairn_kv.protocol import StoreStatus


class FailedBlock(msgspec.Struct, frozen=True, gc=False):
    """A block of a job that did not land; `index` is its position in the call. Its row holds undefined bytes."""

    index: int
    code: ErrorCode


class Proof(msgspec.Struct, frozen=True, gc=False):
    """The block that an engine must compare with its own computation before it is given hits."""

    depth: int
    key: bytes


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all that a call ends in. `tag` is what the call returned."""

    tag: int
    error: Failure | None = None

    @property
    def ok(self) -> bool:
        """Whether the daemon answered, and not with an error."""
        return self.error is None

    def raise_for_error(self) -> None:
        """Raise the error as an exception, for callers that want it.

        Raises:
            CairnError: of the code's family.

        """
        if self.error is not None:
            raise CairnError.of(self.error)


class LookupDone(Completion, frozen=True, kw_only=True):
    """The longest readable prefix. With an error: a miss."""

    request_id: int
    hit: int = 0
    """Blocks of the longest readable prefix, all local tiers."""
    lease: int = 0
    """Makes them readable until the request ends; 0: none."""
    dram_blocks: int = 0
    nvme_blocks: int = 0
    remote_prefix_blocks: int = 0
    """What other nodes have of the chain, as far as is known: a hint that a prefetch turns into a hit."""
    remote_asking: bool = False
    """The remote store is being asked for more of the chain: a later look-up may know of it."""
    estimated_load_microseconds: int = 0
    worth_loading_blocks: int = 0
    """Blocks from the start whose load is quicker than computing them."""
    lease_ms: int = 0
    sampled: bool = False
    """The split by tiers is an estimate."""
    clipped: bool = False
    """The prefix is longer than the instance may pin."""
    proof: Proof | None = None
    """Wanted before hits are answered; the lease then covers `proof.depth` blocks."""


class JobDone(Completion, frozen=True, kw_only=True):
    """The end of a job. With an error of the whole job, `failed` names every block."""

    landed: int = 0
    failed: tuple[FailedBlock, ...] = ()
    bytes: int = 0
    microseconds: int = 0


class LoadDone(JobDone, frozen=True, kw_only=True):
    """The end of a LOAD: `landed` blocks lie verified in their rows; the rows of `failed` hold undefined bytes."""


class StoreDone(JobDone, frozen=True, kw_only=True):
    """The end of a STORE, and its acknowledgement: `landed` of the wanted and pending blocks are visible.

    A STORE that was refused as a whole ends in this alone, with an error.
    """


class StoreOffered(Completion, frozen=True, kw_only=True):
    """The daemon's answer to a STORE, before any copy."""

    statuses: bytes
    """A `StoreStatus` for each key."""
    wanted: int
    pending: int
    resident_depth: int
    """With `parent_absent`: offer again from this depth."""
    parent_absent: bool
    final: bool
    """Nothing is wanted or pending, so no StoreDone follows."""

    def wanted_indices(self) -> list[int]:
        """Positions of the keys that the daemon wants."""
        return [index for index, status in enumerate(self.statuses) if status == StoreStatus.WANTED]


class FillRefused(Completion, frozen=True, kw_only=True):
    """A FILL was refused (`error`); the STORE of `store_tag` stands as before: fill again, or cancel it."""

    store_tag: int


class PrefetchOffered(Completion, frozen=True, kw_only=True):
    """The daemon's answer to a PREFETCH; with `final` no PrefetchDone follows."""

    verdict: str
    """`accepted`, `clipped` or `refused`."""
    reason: str
    blocks: int
    final: bool


class PrefetchOutcome(IntEnum):
    """How a PREFETCH ended."""

    DONE = 0
    CLIPPED = 1
    CANCELLED = 3
    DEADLINE = 4


class PrefetchDone(Completion, frozen=True, kw_only=True):
    """The end of a PREFETCH: the first `resident_blocks` of the chain stand in DRAM."""

    resident_blocks: int = 0
    outcome: PrefetchOutcome | None = None
    bytes: int = 0
    microseconds: int = 0


class CancelDone(Completion, frozen=True, kw_only=True):
    """From here on no byte of the job lands. The job's own completion came before this."""

    was_in_flight: bool = False


class FlushDone(Completion, frozen=True, kw_only=True):
    """No job of this session was in flight when the daemon answered."""


class EndRequestDone(Completion, frozen=True, kw_only=True):
    """The request's lease and chain are gone."""

    was_known: bool = False


class ProveDone(Completion, frozen=True, kw_only=True):
    """The daemon's verdict on a proof."""

    proven: bool = False


class HintDone(Completion, frozen=True, kw_only=True):
    """The daemon's answer to a hint."""

    verdict: str = "refused"
    reason: str = ""


class StatsDone(Completion, frozen=True, kw_only=True):
    """What the daemon tells about this instance and the node (docs/protocol.md, STATS)."""

    stats: dict[str, Any] = {}


class ColdDone(Completion, frozen=True, kw_only=True):
    """The answer to a call of set-up; `value` is its decoded body, `descriptor` −1 or a descriptor to own."""

    value: Any = None
    descriptor: int = -1


class Connected(Completion, frozen=True, kw_only=True):
    """The session is joined to a daemon. With `new_epoch` it is another life of it: leases of before are gone."""

    epoch: str
    new_epoch: bool


class Disconnected(Completion, frozen=True, kw_only=True):
    """The connection ended; every call in flight has ended as a miss. The session connects again by itself."""

    reason: str
