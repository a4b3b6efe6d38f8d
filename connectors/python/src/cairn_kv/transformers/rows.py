"""Blocks of a cache's tensors to and from rows of a window.

A layer of the cache keeps keys and values as [1, heads, tokens, numbers of a head], so a block is a slice of each
tensor. A row holds these slices one behind the other: layer by layer, keys then values, each as [heads, tokens of the
block, numbers of a head]. All slices of a block travel between host and device as one copy.

The layout is proved at registration with the cache's own way of growing: a pattern appended by `update`, as a model's
forward pass appends, must arrive in the row, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from cairn_kv.adapters.identity import NotServed

from .identity import LayerShape

Layers = Sequence[tuple[Any, Any]]
"""Keys and values of each layer: tensors of [1, heads, tokens, numbers of a head]."""

#: Seed of the pattern that the layout is tried with before the daemon tries it with its own.
PATTERN_SEED = 0xCA1


class BlockRows:
    """Copies between blocks of ``block_tokens`` tokens and rows of ``row_bytes``.

    ``devices``: where each layer's tensors lie.
    """

    def __init__(
        self, shapes: Sequence[LayerShape], dtype: torch.dtype, devices: Sequence[Any], block_tokens: int
    ) -> None:
        self._shapes = shapes
        self._devices = devices
        self.dtype = dtype
        self.block_tokens = block_tokens
        self.row_bytes = block_tokens * dtype.itemsize * sum(shape.numbers for shape in shapes)

    def empty(self, blocks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Tensors with room for so many blocks, their content undefined."""
        return [
            (self._tensor(shape.keys, device, blocks), self._tensor(shape.values, device, blocks))
            for shape, device in zip(self._shapes, self._devices, strict=True)
        ]

    def _tensor(self, heads: tuple[int, int], device: Any, blocks: int) -> torch.Tensor:
        size = (1, heads[0], blocks * self.block_tokens, heads[1])
        return torch.empty(size, dtype=self.dtype, device=device)

    def gather(self, layers: Layers, block: int, row: memoryview) -> None:
        """Block to row."""
        span = slice(block * self.block_tokens, (block + 1) * self.block_tokens)
        parts = [tensor.detach()[0, :, span, :].reshape(-1) for pair in layers for tensor in pair]
        together = torch.cat([part.to(parts[0].device) for part in parts])
        assert together.numel() * self.dtype.itemsize == self.row_bytes
        torch.frombuffer(row, dtype=self.dtype).copy_(together)

    def scatter(self, row: memoryview, layers: Layers, block: int) -> None:
        """Row to block."""
        span = slice(block * self.block_tokens, (block + 1) * self.block_tokens)
        host = torch.frombuffer(row, dtype=self.dtype)
        copies: dict[Any, torch.Tensor] = {}
        at = 0
        for tensor in (tensor for pair in layers for tensor in pair):
            if tensor.device not in copies:
                copies[tensor.device] = host.to(tensor.device)
            target = tensor[0, :, span, :]
            target.copy_(copies[tensor.device][at : at + target.numel()].view(target.shape))
            at += target.numel()
        assert at * self.dtype.itemsize == self.row_bytes

    def layers_of(self, cache: Any) -> Layers | None:
        """A cache's tensors if they are what this was made for, and of one sequence; else None."""
        layers = [(layer.keys, layer.values) for layer in cache.layers if layer.is_initialized]
        tokens = cache.get_seq_length()
        if len(layers) != len(self._shapes):
            return None
        for (keys, values), shape in zip(layers, self._shapes, strict=True):
            for tensor, heads in ((keys, shape.keys), (values, shape.values)):
                if tuple(tensor.shape) != (1, heads[0], tokens, heads[1]) or tensor.dtype != self.dtype:
                    return None
        return layers


class LayoutProof:
    """The layout's proof (`cairn_kv.LayoutAdapter`): through a cache of the model's own kind, by its own `update`."""

    def __init__(self, rows: BlockRows) -> None:
        self._rows = rows

    def gather(self, pattern: memoryview, row: memoryview) -> None:
        """Appends zeros and then the pattern to a cache, layer by layer, and copies the second block out."""
        cache = DynamicCache()
        whole = torch.frombuffer(bytearray(pattern), dtype=self._rows.dtype)
        at = 0
        for layer, pair in enumerate(self._rows.empty(1)):
            blocks = []
            for tensor in pair:
                blocks.append(whole[at : at + tensor.numel()].view(tensor.shape).to(tensor.device))
                at += tensor.numel()
            cache.update(torch.zeros_like(pair[0]), torch.zeros_like(pair[1]), layer)
            cache.update(*blocks, layer)
        layers = self._rows.layers_of(cache)
        assert layers is not None
        self._rows.gather(layers, 1, row)

    def scatter(self, row: memoryview) -> bytes:
        """Copies a row behind a block of zeros; what a cache made of both gives for the second block."""
        layers = self._rows.empty(2)
        for tensor in (tensor for pair in layers for tensor in pair):
            tensor.zero_()
        self._rows.scatter(row, layers, 1)
        cache = DynamicCache()
        for layer, pair in enumerate(layers):
            cache.update(*pair, layer)
        tokens = self._rows.block_tokens
        found = [tensor[:, :, tokens:] for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return b"".join(part.contiguous().view(torch.uint8).cpu().numpy().tobytes() for part in found)

    def run(self, row: memoryview) -> None:
        """The same proof without a daemon, which may come later. Raises NotServed."""
        from cairn_kv.window import layout_pattern

        for seed in (PATTERN_SEED, PATTERN_SEED + 1):
            pattern = layout_pattern(seed, len(row))
            self.gather(memoryview(pattern), row)
            if bytes(row) != pattern or self.scatter(row) != pattern:
                raise NotServed("the layout's proof failed: the cache does not grow by its third dimension")
        row[:] = bytes(len(row))
