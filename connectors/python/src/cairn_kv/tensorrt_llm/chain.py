"""Keys of a request's blocks, made here.

The engine has block hashes of its own, in `RequestData.block_hashes`. They are not used: they come with the step's
output, after the one look-up that the engine allows; the newer cache manager leaves them empty; and they are 64-bit
numbers without cryptographic strength, by which two prompts can meet in one key. So a key is the SHA-256 of its
parent's key and the block's tokens, and the root that of everything else that decides about the keys and values.

What else decides, and can be seen on the request, is the cache salt. It goes into the root. A request with a LoRA
adapter (the engine numbers adapters, and a number says nothing about weights), with multimodal inputs, positions or
embeddings of its own, or with an encoder is not served at all; neither is one of an engine whose requests do not show
these fields, for a key that leaves something out finds the blocks of another prompt.

The older cache manager asks from C++, and what comes out of there is the request's C++ half: what Python keeps beside
it (``py_…``) is not there, multimodal data among it, of which the C++ half has a hash only if the engine made one. So
a request without its Python half is served only if the model is known to take nothing but text.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any

from cairn_kv.adapters.identity import NotServed

KEY_BYTES = 32
ALGORITHM = "sha256 parent tokens-i64"

#: Fields with which a block's bytes depend on more than tokens and salt.
FOREIGN_FIELDS = (
    "lora_task_id",
    "multimodal_hashes",
    "multimodal_embedding",
    "prompt_embedding_table",
    "mrope_rotary_cos_sin",
    "position_ids",
    "encoder_tokens",
    "py_multimodal_data",
    "py_encoder_input_features",
)
#: Of each group one name must be there, or the engine has renamed what must be seen.
SEEN_FIELDS = (
    ("lora_task_id",),
    ("multimodal_hashes", "multimodal_embedding"),
    ("cache_salt", "cache_salt_id"),
)
#: The same, unless the model takes nothing but text.
SEEN_FIELD_OTHER_INPUTS = "py_multimodal_data"


def salt_of(request: Any, *, text_only: bool) -> str:
    """What distinguishes the request's blocks beside its tokens. Raises NotServed.

    ``text_only``: the model is known to take nothing but text (identity.py).
    """
    for names in SEEN_FIELDS:
        if not any(hasattr(request, name) for name in names):
            raise NotServed(f"requests of this engine do not show {' or '.join(names)}")
    if not text_only and not hasattr(request, SEEN_FIELD_OTHER_INPUTS):
        raise NotServed(
            "requests of this engine do not show images, and the model's config.json is not one of text alone"
        )
    for name in FOREIGN_FIELDS:
        value = getattr(request, name, None)
        empty = value is None or (isinstance(value, (dict, list, tuple)) and not value)
        if not empty:
            raise NotServed(f"requests with {name} are not served")
    salt = getattr(request, "cache_salt", None)
    if salt is not None:
        return f"salt {salt}"
    number = getattr(request, "cache_salt_id", None)
    return "" if number is None else f"salt number {number}"


class BlockChain:
    """Keys of the full blocks of one request, as its tokens come."""

    def __init__(self, block_tokens: int, salt: str) -> None:
        self._block_tokens = block_tokens
        self._last = hashlib.sha256(b"cairn tensorrt-llm\0" + salt.encode()).digest()
        self._tail: list[int] = []
        self.keys = bytearray()

    @property
    def blocks(self) -> int:
        """Full blocks so far."""
        return len(self.keys) // KEY_BYTES

    @property
    def tokens(self) -> int:
        """Tokens so far, those of the block that is not full included."""
        return self.blocks * self._block_tokens + len(self._tail)

    def extend(self, tokens: Sequence[int]) -> None:
        """The next tokens."""
        self._tail += tokens
        step = self._block_tokens
        whole = len(self._tail) // step * step
        if whole == 0:
            return
        packed = memoryview(array("q", self._tail[:whole])).cast("B")
        for at in range(0, len(packed), 8 * step):
            self._last = hashlib.sha256(self._last + packed[at : at + 8 * step]).digest()
            self.keys += self._last
        del self._tail[:whole]

    def slice(self, first: int, end: int) -> bytes:
        """Keys of the blocks [first, end)."""
        assert 0 <= first <= end <= self.blocks
        return bytes(self.keys[first * KEY_BYTES : end * KEY_BYTES])
