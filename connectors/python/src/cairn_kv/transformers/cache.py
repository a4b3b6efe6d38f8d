"""Caches of Hugging Face transformers whose prefixes come from the daemon and go to it.

`PrefixStore` is made once for a loaded model: it describes the model's blocks, and holds the session and the window.
`CairnCache` is made once for a sequence: a `DynamicCache` that is filled by `restore` before the model runs and read by
`save` afterwards. In between it is a DynamicCache and nothing else, so whatever a model does with one works.

The model computes at least one token of every input: a restored prefix always leaves the last one out.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from transformers import DynamicCache

from cairn_kv import limits
from cairn_kv.adapters.identity import NotServed
from cairn_kv.adapters.proof import comparison_of
from cairn_kv.client import Session
from cairn_kv.errors import CairnError
from cairn_kv.keys import chain_keys
from cairn_kv.window import Window

from .identity import describe
from .probe import attention, examine, unfit
from .rows import BlockRows, Layers, LayoutProof
from .transfer import PrefixTransfer, Scatter
from .weights import Weights

log = logging.getLogger("cairn_kv.transformers")

ROW_ALIGNMENT_BYTES = 64
#: More rows than these make no call faster.
WINDOW_ROWS_MAX = 4_096
#: How long a store's start waits for the daemon; without one it starts all the same.
CONNECT_SECONDS = 2.0
#: Bounds of the options that are times.
SECONDS_MAX = 60.0

#: Options of `generate` with which it is one sequence in a cache that it leaves as the tokens are.
USUAL_OPTIONS = {
    "use_cache": True,
    "num_beams": 1,
    "num_return_sequences": 1,
    "past_key_values": None,
    "custom_generate": None,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
}

TokenIds = Any
"""Token ids of one sequence: a list of integers, or a tensor of [tokens] or [1, tokens]."""


class PrefixStore:
    """What a loaded model shares with other processes of the node.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        socket: the daemon's; None: $CAIRN_SOCKET, else its default place.
        block_tokens: tokens of one block; only whole blocks are stored.
        cache_salt: stores with different salts share nothing.
        weights: a name that stands for the weights, by which the caller vouches that they stay as they are; None: a
            digest of all of them, which reads them now and each time before blocks are used or stored.
        window_bytes: memory shared with the daemon, through which blocks travel.
        timeout_seconds: bounds the jobs of each restore and of each save; a daemon that hangs may keep a save for as
            long as its own bound for a store (`engineApi.storeFillMs`, at most 10 s).
        lookup_timeout_seconds: a look-up that takes longer is a miss.

    A model that is not served (docs/engine-transformers.md) makes a store that stores and loads nothing, with the
    reason in `not_served` and, once, in the log.

    Raises:
        ValueError: an option is out of range.

    """

    def __init__(
        self,
        model: Any,
        *,
        socket: str | None = None,
        block_tokens: int = 32,
        cache_salt: str = "",
        weights: str | None = None,
        window_bytes: int = 256 << 20,
        timeout_seconds: float = 10.0,
        lookup_timeout_seconds: float = 1.0,
    ) -> None:
        _within("block_tokens", block_tokens, 1, 65_536)
        _within("window_bytes", window_bytes, 1 << 16, 1 << 40)
        _within("timeout_seconds", timeout_seconds, 0.001, SECONDS_MAX)
        _within("lookup_timeout_seconds", lookup_timeout_seconds, 0.001, SECONDS_MAX)
        self.model = model
        self.block_tokens = block_tokens
        self.not_served: str | None = None
        self._said: set[str] = set()
        self._session: Session | None = None
        try:
            facts, dtype, devices = examine(model, weights)
            descriptor = describe(model, facts, block_tokens, cache_salt)
            self._attention = facts.attention
            self._weights = Weights(model, facts.weights if weights is None else None)
            self._rows = BlockRows(facts.shapes, dtype, devices, block_tokens)
            assert self._rows.row_bytes == descriptor.row_bytes
            self._session = Session(
                socket or os.environ.get("CAIRN_SOCKET"),
                f"transformers-{uuid.uuid4()}",
                [descriptor],
                engine=("transformers", facts.transformers),
            )
            window = self._open_window(self._session, window_bytes)
            self._transfer = PrefixTransfer(self._session, window, timeout_seconds, lookup_timeout_seconds)
        except (NotServed, CairnError, OSError) as error:
            self.not_served = str(error)
            self.close()
            self._say(f"nothing is stored or loaded: {error}")
        except BaseException:
            self.close()
            raise

    def _open_window(self, session: Session, window_bytes: int) -> Window:
        stride_bytes = -(-self._rows.row_bytes // ROW_ALIGNMENT_BYTES) * ROW_ALIGNMENT_BYTES
        rows = min(max(1, window_bytes // stride_bytes), WINDOW_ROWS_MAX, limits.KEYS_PER_FRAME_MAX)
        proof = LayoutProof(self._rows)
        session.wait_connected(CONNECT_SECONDS)
        window = session.create_window(rows, stride_bytes=stride_bytes, adapter=proof)
        proof.run(window.row(0))
        window.note_proven()
        return window

    def __enter__(self) -> PrefixStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> PrefixStore:
        """A copied cache belongs to the same store."""
        return self

    def close(self) -> None:
        """End the session with the daemon; what was stored stays there. Caches work on as DynamicCaches."""
        if self._session is not None:
            self._session.close()

    def counters(self) -> dict[str, int]:
        """What was counted since the start (`transfer.Counters`), and how often all weights were read since then.

        Empty if the model is not served.
        """
        if self.not_served is not None:
            return {}
        return {**self._transfer.counters.as_dict(), "weights_read": self._weights.read}

    def generate(self, input_ids: torch.Tensor, *, attention_mask: torch.Tensor | None = None, **options: Any) -> Any:
        """What `model.generate` gives, with the prefix restored before it and what was computed saved after it.

        A batch of more than one sequence, padding, beams, several sequences per input, an assistant model and inputs
        other than token ids are generated without the daemon, and this is said once.
        """
        reason = _not_plain(self.model, input_ids, attention_mask, options)
        if reason is not None:
            self._say(f"generated without stored prefixes: {reason}")
            return self.model.generate(input_ids, attention_mask=attention_mask, **options)
        cache = CairnCache(self)
        cache.restore(input_ids)
        # Without a mask, tokens that are equal to the padding's would be taken for padding.
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        output = self.model.generate(input_ids, attention_mask=mask, past_key_values=cache, **options)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        if cache.get_seq_length() == sequences.shape[1] - 1:
            cache.save(sequences)
        else:
            self._say("not stored: the cache does not hold all tokens but the last")
        return output

    # For CairnCache.

    def fits(self) -> bool:
        """Whether what the model computes now belongs to the store's namespace; if not, the reason is said once."""
        if self.not_served is not None:
            return False
        reason = unfit(self.model)
        if reason is None and attention(self.model) != self._attention:
            reason = f"attention is computed by {attention(self.model)}, the store was made with {self._attention}"
        return self._as_it_was(reason or self._weights.touched(self.model))

    def _as_it_was(self, reason: str | None) -> bool:
        if reason is not None:
            self._say(f"not stored or loaded now: {reason}")
        return reason is None

    def sequence(self, input_ids: TokenIds) -> list[int] | None:
        """The token ids as a list; None, said once, for a batch of more than one sequence."""
        ids = input_ids.tolist() if isinstance(input_ids, torch.Tensor) else list(input_ids)
        if ids and isinstance(ids[0], Sequence):
            if len(ids) != 1:
                self._say("not stored or loaded: a batch of several sequences; one is served")
                return None
            ids = list(ids[0])
        return [int(token) for token in ids]

    def load(self, keys: Sequence[bytes]) -> tuple[int, Layers, bool]:
        """(blocks of the prefix that arrived, tensors that begin with them, whether a proof is wanted first)."""
        layers: list[tuple[torch.Tensor, torch.Tensor]] = []

        def begin(blocks: int) -> Scatter:
            layers.extend(self._rows.empty(blocks))
            return lambda row, block: self._rows.scatter(row, layers, block)

        with torch.no_grad():
            loaded = self._transfer.load(keys, begin)
            # Where nothing was found there is nothing to use, and the weights need not be read.
            used = loaded.blocks if loaded.blocks > 0 and self._as_it_was(self._weights.differ(self.model)) else 0
        return used, layers, loaded.proof_wanted

    def save(self, cache: DynamicCache, keys: Sequence[bytes], known: int, *, prove: bool) -> int | None:
        """Prove a block if that is due, then store; blocks acknowledged, or None if they are not the namespace's."""
        layers = self._rows.layers_of(cache)
        if layers is None:
            self._say("not stored: the cache is not what the model fills for one sequence")
            return None

        def gather(block: int, row: memoryview) -> None:
            self._rows.gather(layers, block, row)

        if not prove and known == len(keys):
            return known
        if self._session is None or not self._session.connected:
            # Decided before the weights are read: a daemon that comes now gets nothing that was not compared.
            self._transfer.counters.stored_blocks_short += len(keys) - known
            return known
        with torch.no_grad():
            if not self._as_it_was(self._weights.differ(self.model)):
                return None
            if prove:
                self._prove(keys, gather)
            return self._transfer.save(keys, known, gather)

    def _prove(self, keys: Sequence[bytes], gather: Any) -> None:
        verdict = self._transfer.prove(keys, gather, comparison_of(self._rows.dtype))
        if verdict is False:
            self._say("a stored block differs from the computed one: blocks of earlier processes are not used")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("cairn: %s", text)


class CairnCache(DynamicCache):
    """The cache of one sequence, with a prefix out of the daemon.

        cache = CairnCache(store)
        cache.restore(input_ids)
        model(input_ids[:, cache.get_seq_length():], past_key_values=cache)    # or model.generate(input_ids, …)
        cache.save(input_ids)

    Positions count from 0 without gaps: no padding. What `save` is told is believed.
    """

    def __init__(self, store: PrefixStore) -> None:
        super().__init__(config=store.model.config)
        self._store = store
        self._known: list[bytes] = []
        """Keys of the blocks in the cache that the daemon has given, or acknowledged."""
        self._proof_wanted = False

    def restore(self, input_ids: TokenIds) -> int:
        """Fill an empty cache with the longest prefix of the input that the daemon has, never with all of it.

        Returns:
            Tokens restored; 0 without a daemon, for a batch of more than one sequence, and if the cache holds tokens.

        """
        store = self._store
        if not store.fits() or self.get_seq_length() > 0:
            return 0
        ids = store.sequence(input_ids)
        keys = [] if ids is None else chain_keys(ids[:-1], store.block_tokens)
        if not keys:
            return 0
        blocks, layers, self._proof_wanted = store.load(keys)
        tokens = blocks * store.block_tokens
        if blocks > 0:
            for layer, (own_keys, own_values) in enumerate(layers):
                self.update(own_keys[:, :, :tokens], own_values[:, :, :tokens], layer)
        self._known = keys[:blocks]
        return tokens

    def save(self, input_ids: TokenIds) -> int:
        """Store the whole blocks that the cache holds and the daemon does not have yet.

        Args:
            input_ids: what the cache was computed from, from the first token on; longer is allowed, as what
                `generate` returns is: its last token has no keys and values yet.

        Returns:
            Tokens from the start that the daemon has acknowledged.

        Raises:
            ValueError: the tokens are not those that were restored or saved before.

        """
        store = self._store
        if not store.fits():
            return 0
        ids = store.sequence(input_ids)
        if ids is None:
            return 0
        keys = chain_keys(ids[: self.get_seq_length()], store.block_tokens)
        known = min(len(self._known), len(keys))
        if keys[:known] != self._known[:known]:
            raise ValueError("these tokens are not those that the cache was restored or saved with")
        if not keys:
            return 0
        # Nothing was restored where a proof was wanted: whatever block it is about, it was computed here.
        prove, self._proof_wanted = self._proof_wanted, False
        saved = store.save(self, keys, known, prove=prove)
        if saved is None:
            return 0
        self._known = keys[:saved]
        return saved * store.block_tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Forget tokens at the end; the cache may go on with others."""
        super().crop(tokens_to_remove)
        del self._known[self.get_seq_length() // self._store.block_tokens :]

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self._known.clear()


def _not_plain(model: Any, input_ids: Any, attention_mask: Any, options: dict[str, Any]) -> str | None:
    """Why a generation is not one sequence computed from its token ids alone; None if it is."""
    if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or input_ids.shape[0] != 1:
        return "one sequence, as a tensor of [1, tokens], is served"
    if attention_mask is not None and not bool((attention_mask == 1).all()):
        return "the input is padded"
    for name, value in options.items():
        if isinstance(value, (torch.Tensor, torch.nn.Module)):
            return f"{name} may change what the tokens' keys and values are"
    config = options.get("generation_config") or model.generation_config
    for name, usual in USUAL_OPTIONS.items():
        given = options.get(name, getattr(config, name, None))
        if given is not None and given != usual:
            return f"{name} is set"
    return None


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}; {least} to {most}")
