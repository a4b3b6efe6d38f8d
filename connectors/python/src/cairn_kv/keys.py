"""Block keys without work per key.

An engine holds the keys of a request either as a list of `bytes` (vLLM's block hashes) or in one buffer. A list is
joined by one call of C, a buffer goes to the socket as it is. Both spellings may be cut at a depth, so that a look-up
of a long conversation sends only what is new. Key lengths are held against the namespace as a whole, not one by one:
a list whose keys differ in length and yet add up names blocks that nobody stored, which is a miss.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import sha256
from sys import byteorder
from typing import Final, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
Keys: TypeAlias = Buffer | Sequence[bytes]
"""Keys of a chain in order, the first of depth 1 (or of the depth that the call names)."""

Rows: TypeAlias = "Buffer | Sequence[int] | array[int]"
"""Window rows: a sequence of numbers, or a buffer of little-endian unsigned 32-bit numbers."""

U32: Final = next(code for code in "IL" if array(code).itemsize == 4)  # noqa: PLR2004 (bytes of a u32)
"""The array type code of 32 unsigned bits on this host."""


def count_keys(keys: Keys, key_bytes: int) -> int:
    """Return the number of keys.

    Raises:
        ValueError: a buffer's length is no multiple of `key_bytes`.

    """
    if not isinstance(keys, (bytes, bytearray, memoryview)):
        return len(keys)
    count, rest = divmod(memoryview(keys).nbytes, key_bytes)
    if rest != 0:
        raise ValueError(f"keys of {key_bytes} bytes do not fill the buffer: {rest} bytes are left over")
    return count


def slice_keys(keys: Keys, key_bytes: int, start: int, stop: int) -> Buffer:
    """Return keys `start` to `stop` as one buffer; a buffer is not copied.

    Raises:
        ValueError: a list's keys are not `key_bytes` long on average, or a buffer is not contiguous.

    """
    if isinstance(keys, (bytes, bytearray, memoryview)):
        view = memoryview(keys)
        if not view.c_contiguous:
            raise ValueError("keys lie in one contiguous buffer")
        return view.cast("B")[start * key_bytes : stop * key_bytes]
    whole = start == 0 and stop == len(keys)
    joined = b"".join(keys if whole else keys[start:stop])
    if len(joined) != (stop - start) * key_bytes:
        raise ValueError(f"the namespace's keys are {key_bytes} bytes long")
    return joined


def pack_numbers(numbers: Rows, count: int) -> Buffer:
    """Return `count` row numbers as little-endian u32.

    Raises:
        ValueError: there are more or fewer.
        OverflowError: a number is negative or longer than 32 bits.

    """
    packed = memoryview(numbers) if isinstance(numbers, (bytes, bytearray, memoryview)) else _array(numbers)
    data = packed.cast("B")
    if data.nbytes != count * 4:
        raise ValueError(f"{data.nbytes // 4} rows for {count} keys")
    return data


def pack_pairs(first: Sequence[int], second: Sequence[int]) -> Buffer:
    """Return (first, second) pairs of u32 as a FILL names them.

    Raises:
        ValueError: the sequences differ in length.

    """
    if len(first) != len(second):
        raise ValueError(f"{len(second)} rows for {len(first)} positions")
    return _array(number for pair in zip(first, second) for number in pair).cast("B")  # noqa: B905 (checked above)


def _array(numbers: Iterable[int]) -> memoryview:
    packed = array(U32, numbers)
    if byteorder == "big":
        packed.byteswap()
    return memoryview(packed)


def chain_keys(tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    """Return the keys (32 bytes) of the full blocks of a sequence, for engines that have no block hashes of their own.

    A key is SHA-256 over its parent's key (nothing, for the first block) and the block's tokens as little-endian u32:
    it names its block and everything before it. Tokens that do not fill a block have no key.

    Raises:
        ValueError: block_tokens is less than 1.
        OverflowError: a token is negative or longer than 32 bits.

    """
    if block_tokens < 1:
        raise ValueError(f"blocks of {block_tokens} tokens")
    packed = _array(tokens).cast("B")
    size_bytes = 4 * block_tokens
    keys: list[bytes] = []
    parent = b""
    for at in range(0, len(tokens) // block_tokens * size_bytes, size_bytes):
        parent = sha256(parent + packed[at : at + size_bytes]).digest()
        keys.append(parent)
    return keys
