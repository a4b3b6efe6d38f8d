"""What adapters say of an engine's blocks, whichever engine it is.

A namespace is a promise: engines with equal descriptors may read each other's bytes. What an adapter cannot tell apart
for certain is `NotServed`: it then stores and loads nothing and says so once. Which facts of an engine decide about its
blocks' bytes is each adapter's own knowledge, in the `identity` module of its folder.

Imports neither an engine nor torch.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cairn_kv.protocol import NamespaceDescriptor

#: Bytes read from each end of a weight file for its fingerprint.
FINGERPRINT_BYTES = 1 << 20

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


class NotServed(Exception):
    """This engine's configuration is outside of what the connector serves; the text says which part and why."""


@dataclass(frozen=True)
class Identity:
    """One engine's blocks.

    ``descriptor`` is HELLO's; ``layer_names`` in the engine's order; ``page_bytes`` bytes of one block in one layer;
    ``world`` ranks in all; ``cache_dtype`` the engine's name of the cache's type.
    """

    descriptor: NamespaceDescriptor
    layer_names: tuple[str, ...]
    page_bytes: int
    world: int
    cache_dtype: str = "auto"

    @property
    def row_bytes(self) -> int:
        """Bytes of one block over all layers of one rank."""
        return self.descriptor.row_bytes

    @property
    def block_tokens(self) -> int:
        """Tokens of one block."""
        return self.descriptor.block_tokens

    @property
    def key_bytes(self) -> int:
        """Bytes of one key."""
        return self.descriptor.key_bytes

    @property
    def shards(self) -> int:
        """Ranks that hold a different part of each block."""
        return self.descriptor.shards

    def shard_of(self, rank: int) -> int:
        """The shard that the worker of this rank holds: its rank, or 0 where all ranks hold the same bytes."""
        return rank if self.shards > 1 else 0

    def stores(self, rank: int) -> bool:
        """Whether the worker of this rank stores: where all hold the same bytes, only the first does."""
        return self.shards > 1 or rank == 0


def weights_fingerprint(directory: Path) -> str:
    """Names, sizes and both ends of the weight files of a local model directory; empty for a hub's name."""
    if not directory.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix not in WEIGHT_SUFFIXES or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(FINGERPRINT_BYTES))
            file.seek(max(0, size - FINGERPRINT_BYTES), os.SEEK_SET)
            digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()[:32]
