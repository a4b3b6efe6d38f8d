"""Which weights a model computes with, and whether it still computes with those.

A tensor's version counts only what is done to the tensor itself. `weight.data += delta`, which is how adapters are
merged, leaves version and address as they were; so does a write through numpy or another view of the memory. Nothing
short of reading every number notices, and a sample would miss the edit of a few rows. So weights whose identity is a
digest are read again each time before a block is used or stored. Whoever names the weights vouches for them instead:
then only addresses and versions are looked at.

The digest: each MiB of a tensor is added up where it lies, as 32-bit integers that are multiplied by random odd factors
of 64 bits by position, modulo 2^64; SHA-256 goes over the sums. Integers add up to the same on every device, in any
order and by any number of threads. The change of one number is always noticed, any other change but for a chance of
2^-32: a difference of two 32-bit numbers has at most 31 factors of two, so no position's bits fall off the end. It
tells versions of a model apart; it does not withstand forgery.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from cairn_kv.adapters.identity import NotServed

#: Bytes of a tensor that make one sum.
PIECE_BYTES = 1 << 20
WORD_BYTES = 4
PIECE_WORDS = PIECE_BYTES // WORD_BYTES
#: Pieces that are added up at once: what fits a processor's cache, and enough to keep an accelerator busy.
CPU_PIECES = 1
DEVICE_PIECES = 32
FACTORS_SEED = 1
CHANGED = "the model's weights have changed since the store was made: make another"


class Weights:
    """The weights as they are when this is made. What has once been seen changed stays so.

    Caches that were filled in between hold what the other weights computed, even when the first ones are put back.

    Args:
        model: the model.
        digest: of its weights (`weights_digest`); None: the caller vouches for them.

    """

    def __init__(self, model: Any, digest: str | None) -> None:
        self.read = 0
        """How often all of them were read since."""
        self._digest = digest
        self._mark = _mark(model)
        self._changed = False

    def touched(self, model: Any) -> str | None:
        """Why the weights are not these, as far as it shows without reading them; None if nothing shows."""
        self._changed = self._changed or _mark(model) != self._mark
        return CHANGED if self._changed else None

    def differ(self, model: Any) -> str | None:
        """Why the weights are not these, number by number; None if they are. Vouched for, nothing is read."""
        if self._digest is None or self._changed:
            return self.touched(model)
        self.read += 1
        try:
            self._changed = weights_digest(model) != self._digest
        except NotServed as error:
            return str(error)
        return CHANGED if self._changed else None


def weights_digest(model: Any) -> str:
    """A digest of every parameter and buffer, names and shapes included; equal on each device. Raises NotServed."""
    digest = hashlib.sha256()
    for name, tensor in _tensors(model):
        if tensor.is_meta:
            raise NotServed(f"{name} is not in memory: name the weights with weights=")
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        try:
            digest.update(repr(_sums(tensor)).encode())
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise NotServed(f"{name} cannot be read ({error}): name the weights with weights=") from error
    return digest.hexdigest()[:32]


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from sorted(model.named_parameters(), key=lambda entry: str(entry[0]))
    yield from sorted(model.named_buffers(), key=lambda entry: str(entry[0]))


def _sums(tensor: torch.Tensor) -> list[int]:
    """A sum of each piece of a tensor's bytes; the last one is filled up with zeros."""
    words = _words(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
    factors = _factors(words.device)
    whole = words.numel() // PIECE_WORDS
    pieces = words[: whole * PIECE_WORDS].view(whole, PIECE_WORDS)
    at_once = CPU_PIECES if words.device.type == "cpu" else DEVICE_PIECES
    sums = [(some * factors).sum(1) for some in pieces.split(at_once)] if whole else []
    rest = words[whole * PIECE_WORDS :]
    if rest.numel():
        sums.append((rest * factors[: rest.numel()]).sum().view(1))
    return torch.cat(sums).tolist() if sums else []


def _words(raw: torch.Tensor) -> torch.Tensor:
    """Bytes as 32-bit integers; copied only where they do not divide or lie so."""
    if raw.numel() % WORD_BYTES or raw.storage_offset() % WORD_BYTES or raw.data_ptr() % WORD_BYTES:
        padded = torch.zeros(-(-raw.numel() // WORD_BYTES) * WORD_BYTES, dtype=torch.uint8, device=raw.device)
        padded[: raw.numel()] = raw
        raw = padded
    return raw.view(torch.int32)


@functools.cache
def _factors(device: torch.device) -> torch.Tensor:
    """The same on every device: made on the CPU, by a generator of their own."""
    generator = torch.Generator(device="cpu").manual_seed(FACTORS_SEED)
    least, most = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    drawn = torch.randint(least, most, (PIECE_WORDS,), generator=generator, dtype=torch.int64, device="cpu")
    return (drawn | 1).to(device)


def _mark(model: Any) -> int:
    return hash(tuple((name, tensor.data_ptr(), _version(tensor)) for name, tensor in _tensors(model)))


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else int(tensor._version)
