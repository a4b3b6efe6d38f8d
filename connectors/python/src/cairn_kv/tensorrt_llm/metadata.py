"""What the scheduler's half tells the workers each step: plain data, which the engine broadcasts to all ranks.

Nothing comes back by the engine's means. What the workers have to say, they write into a mailbox in shared memory
(mailbox.py), which `Source` names.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """Where the scheduler's process keeps what all ranks of its node read.

    ``memory`` is the inode of the staging memory, so that a descriptor that meanwhile means something else is not
    taken for it; ``token`` proves the same of the mailbox. ``kept`` are inodes of memories before it that loads of this
    step or later ones still name.
    """

    pid: int
    mailbox: int
    token: bytes
    staging: int
    memory: int
    size_bytes: int
    kept: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoadPlan:
    """Verified blocks that lie in staging memory ``memory``: those of shard s at ``offsets[s]``, into ``block_ids``."""

    memory: int
    offsets: list[list[int]]
    block_ids: list[int]


@dataclass(frozen=True)
class StorePlan:
    """Blocks [start_depth, start_depth + len(block_ids)) of a chain, complete once this step's forward pass is.

    ``chain`` is the scheduler's number of the request: what comes of the store is told by it.
    """

    chain: int
    start_depth: int
    parent_key: bytes
    keys: bytes
    block_ids: list[int]


@dataclass(frozen=True)
class ProofPlan:
    """A stored block of an earlier life, one offset per shard, and the block that the engine has computed itself."""

    number: int
    memory: int
    offsets: list[int]
    block_id: int


@dataclass(frozen=True)
class Step:
    """One step's work. ``serial`` grows with each step: the engine may show the same step twice, or leave one out.

    ``loads_before`` and ``rows_before`` are the sums of all steps before it: plans to load, and rows out of each rank's
    credit. ``proof_before`` is the number of the last proof in them. So a rank that was never shown a step knows what
    it has missed.
    """

    serial: int
    source: Source | None = None
    loads_before: int = 0
    rows_before: int = 0
    proof_before: int = 0
    loads: list[LoadPlan] = field(default_factory=list)
    stores: list[StorePlan] = field(default_factory=list)
    proofs: list[ProofPlan] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows that the step takes out of each rank's credit."""
        return sum(len(plan.block_ids) for plan in self.stores) + len(self.proofs)
