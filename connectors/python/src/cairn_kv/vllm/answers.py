"""What the daemon tells the scheduler's half."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """A look-up's answer: ``hit`` blocks from the root, readable under ``lease`` in the daemon's life ``epoch``."""

    tag: int
    hit: int
    lease: int
    epoch: str
    proof_depth: int = 0
    proof_key: bytes = b""
    #: Blocks from the root that other nodes stored, as far as the daemon knows, and whether it may know more soon.
    remote: int = 0
    remote_asking: bool = False


@dataclass(frozen=True)
class Fetched:
    """A fetch's end: ``blocks`` of the chain are in the daemon's memory."""

    tag: int
    blocks: int
