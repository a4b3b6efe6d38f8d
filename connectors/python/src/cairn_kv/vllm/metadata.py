"""What the scheduler side tells the workers each step, and what the workers tell it back.

Both travel between processes by the engine's own means, so they are plain data. Keys go as one piece of bytes per plan:
a step that fills thousands of blocks costs one copy, not thousands of objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata
except ImportError:  # Without the engine the halves are tested all the same, and what they say is plain data.
    KVConnectorMetadata = object  # type: ignore[assignment,misc]
    KVConnectorWorkerMetadata = object  # type: ignore[assignment,misc]


@dataclass
class LoadPlan:
    """Blocks [start_depth, start_depth + len(block_ids)) of a leased chain, into these blocks of the engine."""

    request_id: str
    lease: int
    start_depth: int
    keys: bytes
    block_ids: list[int]


@dataclass
class StorePlan:
    """Full blocks that this step completes. ``serial`` names the plan in its outcome."""

    serial: int
    request_id: str
    lease: int
    start_depth: int
    parent_key: bytes
    keys: bytes
    block_ids: list[int]


@dataclass
class ProofPlan:
    """One block that the engine computed and the daemon holds from another life, to be compared."""

    serial: int
    request_id: str
    lease: int
    depth: int
    key: bytes
    block_id: int


@dataclass
class CairnMetadata(KVConnectorMetadata):
    """One step's work for the workers."""

    loads: list[LoadPlan] = field(default_factory=list)
    stores: list[StorePlan] = field(default_factory=list)
    proofs: list[ProofPlan] = field(default_factory=list)
    #: Requests whose blocks are about to be given to others: nothing may read them once the step begins.
    preempted: set[str] = field(default_factory=set)
    #: Finished requests whose blocks the engine keeps until every worker reported them.
    awaited: set[str] = field(default_factory=set)


@dataclass
class StoreOutcome:
    """How far a plan came: blocks up to depth ``visible`` are acknowledged.

    ``resident`` is set if the chain was cut off above the plan: the depth down to which the daemon still holds it.
    """

    visible: int
    resident: int | None = None
    ranks: int = 1

    def merge(self, other: StoreOutcome) -> StoreOutcome:
        """Of several ranks: what all of them reached."""
        residents = [value for value in (self.resident, other.resident) if value is not None]
        return StoreOutcome(
            visible=min(self.visible, other.visible),
            resident=min(residents) if residents else None,
            ranks=self.ranks + other.ranks,
        )


@dataclass
class ProofOutcome:
    """``same`` is None if the stored block could not be read: that is no verdict."""

    request_id: str
    same: bool | None
    ranks: int = 1

    def merge(self, other: ProofOutcome) -> ProofOutcome:
        """Of several ranks: a difference counts above no verdict, no verdict above sameness."""
        verdicts = (self.same, other.same)
        same = False if False in verdicts else None if None in verdicts else True
        return ProofOutcome(self.request_id, same, self.ranks + other.ranks)


@dataclass
class CairnWorkerMetadata(KVConnectorWorkerMetadata):
    """What ended since the last step, by the plan's serial and the proof's request."""

    stores: dict[int, StoreOutcome] = field(default_factory=dict)
    proofs: dict[str, ProofOutcome] = field(default_factory=dict)
    #: Rank of a worker to whether the daemon has its window, of those where that changed: without one every load fails.
    windows: dict[int, bool] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> CairnWorkerMetadata:
        """One answer of several workers."""
        assert isinstance(other, CairnWorkerMetadata)
        merged = CairnWorkerMetadata(dict(self.stores), dict(self.proofs), {**self.windows, **other.windows})
        for serial, outcome in other.stores.items():
            mine = merged.stores.get(serial)
            merged.stores[serial] = outcome if mine is None else mine.merge(outcome)
        for request_id, verdict in other.proofs.items():
            held = merged.proofs.get(request_id)
            merged.proofs[request_id] = verdict if held is None else held.merge(verdict)
        return merged
