"""What adapters say of an engine's blocks, whichever engine it is.

A namespace is a promise: engines with equal descriptors may read each other's bytes. What an adapter cannot tell apart
for certain is `NotServed`: it then stores and loads nothing and says so once. Which facts of an engine decide about its
blocks' bytes is each adapter's own knowledge, in the `identity` module of its folder.

Imports neither an engine nor torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cairn_kv.protocol import NamespaceDescriptor

#: Bytes read from each end of a weight file for its fingerprint.
FINGERPRINT_BYTES = 1 << 20
#: Bytes of each of the stripes, evenly spaced, that are read between the ends, …
STRIPE_BYTES = 64 << 10
#: … how many there are of one file, …
STRIPES_PER_FILE = 64
#: … and of all files of a model, save that each has one: an engine's start waits for the fingerprint.
STRIPES_MAX = 1_024

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


def weights_fingerprint(model: Path) -> str:
    """Names, sizes and parts (`pieces_read`) of a local model's weight files; empty for a hub's name.

    ``model`` is a directory, or the one file that the model is. Two checkpoints of one training differ everywhere. What
    differs between the stripes alone is left to the daemon's proof.
    """
    paths = [model] if model.is_file() else _weight_files(model)
    if paths is None:
        return ""
    stripes = max(1, min(STRIPES_PER_FILE, STRIPES_MAX // max(1, len(paths))))
    digest = hashlib.sha256()
    for path in paths:
        size_bytes = path.stat().st_size
        digest.update(f"{path.name}\0{size_bytes}\0".encode())
        with path.open("rb") as file:
            for piece in pieces_read(size_bytes, stripes):
                file.seek(piece.start)
                digest.update(file.read(piece.stop - piece.start))
    return digest.hexdigest()[:32]


def pieces_read(size_bytes: int, stripes: int) -> list[slice]:
    """The bytes of a weight file that its fingerprint reads: both ends and stripes between them; a small file whole."""
    between = size_bytes - 2 * FINGERPRINT_BYTES
    if between <= stripes * STRIPE_BYTES:
        return [slice(0, size_bytes)]
    starts = [FINGERPRINT_BYTES + number * between // stripes for number in range(stripes)]
    ends = [slice(0, FINGERPRINT_BYTES), slice(size_bytes - FINGERPRINT_BYTES, size_bytes)]
    return [ends[0], *(slice(start, start + STRIPE_BYTES) for start in starts), ends[1]]


def _weight_files(directory: Path) -> list[Path] | None:
    if not directory.is_dir():
        return None
    return [path for path in sorted(directory.iterdir()) if path.suffix in WEIGHT_SUFFIXES and path.is_file()]
