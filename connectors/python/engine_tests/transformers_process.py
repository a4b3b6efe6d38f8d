"""One process with a model of transformers: a JSON job per line of standard input, its answer on standard output.

Each job names a method of `Jobs`; its other fields are the arguments. One thread computes, so that equal pieces of a
prompt give equal bits.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from cairn_kv.transformers import CairnCache, PrefixStore, weights
from cairn_kv.transformers.rows import BlockRows

SCATTER = BlockRows.scatter


def _merge(data: torch.Tensor) -> None:
    data += 0.1 * torch.randn_like(data)  # As adapters are merged: of the parameter itself nothing is called.


def _next_up(data: torch.Tensor) -> None:
    last = data.view(-1)[-1:]
    last.copy_(torch.nextafter(last, last + 1))


def _negate_a_column(data: torch.Tensor) -> None:
    data[:, 1].neg_()  # An even number of top bits, all at one place of eight bytes.


def _swap_rows(data: torch.Tensor) -> None:
    data.copy_(data.roll(1, 0))


#: Writes to a tensor through its `.data`, which its version does not count: the place of the tensor, and what is done.
EDITS: dict[str, tuple[str, Callable[[torch.Tensor], Any]]] = {
    "merge": ("layers.0.self_attn.v_proj.weight", _merge),
    "next up": ("layers.1.self_attn.k_proj.weight", _next_up),
    "negate a column": ("layers.0.self_attn.k_proj.weight", _negate_a_column),
    "swap rows": ("embed_tokens.weight", _swap_rows),
    "buffer": ("rotary_emb.inv_freq", lambda data: data.mul_(0.5)),
}


class Said(logging.Handler):
    """Keeps what the adapter logs."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        self.texts.append(record.getMessage())


class Jobs:
    """The model, its store and the cache of the sequence at hand."""

    def __init__(self) -> None:
        self.said = Said()
        logging.getLogger("cairn_kv.transformers").addHandler(self.said)
        self.model: Any = None
        self.store: PrefixStore | None = None
        self.cache: DynamicCache | None = None

    def load(
        self, model: str | None = None, config: dict[str, Any] | None = None, dtype: str = "float32", seed: int = 0
    ) -> dict[str, Any]:
        """Takes a model from a directory, or makes one with random weights."""
        self.close()
        kind = getattr(torch, dtype)
        if model is not None:
            self.model = AutoModelForCausalLM.from_pretrained(model, dtype=kind)
            return {}
        torch.manual_seed(seed)
        made = AutoConfig.for_model(**(config or {}))
        self.model = AutoModelForCausalLM.from_config(made, dtype=kind).eval()
        return {}

    def disturb(self, by: float) -> dict[str, Any]:
        """Makes other weights of the model's."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(by * torch.randn_like(parameter))
        return {}

    def open(self, **options: Any) -> dict[str, Any]:
        """Makes a store."""
        self.close()
        self.store = PrefixStore(self.model, **options)
        return {"notServed": self.store.not_served}

    def close(self) -> dict[str, Any]:
        """Ends the store."""
        if self.store is not None:
            self.store.close()
        self.store = None
        return {}

    def restore(self, ids: list[Any]) -> dict[str, Any]:
        """Begins a sequence, or a batch of them."""
        assert self.store is not None
        self.cache = CairnCache(self.store)
        return {"tokens": self.cache.restore(ids)}

    def plain(self) -> dict[str, Any]:
        """Begins a sequence without the daemon."""
        self.cache = DynamicCache(config=self.model.config)
        return {}

    def forward(self, ids: list[int], first: int) -> dict[str, Any]:
        """Computes what is not there yet, its first `first` tokens by themselves; the logits of the rest."""
        assert self.cache is not None
        with torch.no_grad():
            if self.cache.get_seq_length() < first:
                self.model(torch.tensor([ids[:first]]), past_key_values=self.cache)
            done = self.cache.get_seq_length()
            logits = self.model(torch.tensor([ids[done:]]), past_key_values=self.cache).logits
        raw = logits.contiguous().view(torch.uint8).numpy().tobytes()
        return {"logits": hashlib.sha256(raw).hexdigest(), "best": logits[0].argmax(-1).tolist()}

    def save(self, ids: list[Any]) -> dict[str, Any]:
        """Stores what the sequence's cache holds."""
        assert isinstance(self.cache, CairnCache)
        return {"tokens": self.cache.save(ids)}

    def copy(self) -> dict[str, Any]:
        """Goes on with a copy of the sequence's cache, as a prompt's cache is copied for each of its continuations."""
        self.cache = copy.deepcopy(self.cache)
        return {}

    def crop(self, tokens: int) -> dict[str, Any]:
        """Forgets tokens at the end of the sequence."""
        assert self.cache is not None
        self.cache.crop(-tokens)
        return {}

    def generate(self, ids: list[Any], plain: bool = False, **options: Any) -> dict[str, Any]:
        """The best tokens that follow, of each sequence."""
        batch = torch.tensor(ids if isinstance(ids[0], list) else [ids])
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **options}
        if plain:
            out = self.model.generate(batch, attention_mask=torch.ones_like(batch), **options)
        else:
            assert self.store is not None
            out = self.store.generate(batch, **options)
        return {"tokens": out[:, batch.shape[1] :].tolist()}

    def spoil(self, how: str) -> dict[str, Any]:
        """Does something to the model after which its blocks are not those of the store's namespace."""
        if how == "training":
            self.model.train()
        elif how == "hook":
            self.model.model.layers[0].register_forward_hook(lambda _module, _given, output: output)
        elif how == "attention":
            self.model.set_attn_implementation("eager")
        elif how == "buffer":
            self.model.model.rotary_emb.inv_freq.mul_(0.5)
        else:
            assert how == "weights"
            self.disturb(0.1)
        return {}

    def edit(self, how: str) -> dict[str, Any]:
        """Writes through a tensor's `.data`."""
        place, write = EDITS[how]
        owner, _, name = place.rpartition(".")
        self.edited = getattr(self.model.model.get_submodule(owner), name)
        self.unedited = self.edited.detach().clone()
        write(self.edited.data)
        return {"changed": not torch.equal(self.edited, self.unedited)}

    def put_back(self) -> dict[str, Any]:
        """Writes what the last edit overwrote."""
        self.edited.data.copy_(self.unedited)
        return {}

    def digest(self, pieces: int = weights.CPU_PIECES) -> dict[str, Any]:
        """The digest of the model's weights, with so many pieces of a tensor added up at once."""
        usual, weights.CPU_PIECES = weights.CPU_PIECES, pieces
        try:
            return {"digest": weights.weights_digest(self.model)}
        finally:
            weights.CPU_PIECES = usual

    def shift(self) -> dict[str, Any]:
        """Moves each parameter's numbers to where they begin one number after the start of their memory."""
        for parameter in self.model.parameters():
            flat = parameter.detach().reshape(-1)
            parameter.data = torch.cat([flat[:1], flat])[1:].view(parameter.shape)
        return {}

    def forget(self) -> dict[str, Any]:
        """Ends what one test began."""
        BlockRows.scatter = SCATTER  # type: ignore[method-assign]
        self.model = self.cache = None
        self.said.texts.clear()
        return self.close()

    def zero_blocks(self) -> dict[str, Any]:
        """From here on every block that is loaded arrives as zeros."""

        def zeroed(self: BlockRows, row: memoryview, layers: Any, block: int) -> None:
            SCATTER(self, memoryview(bytearray(len(row))), layers, block)

        BlockRows.scatter = zeroed  # type: ignore[method-assign]
        return {}

    def counters(self) -> dict[str, Any]:
        """What the store counted."""
        assert self.store is not None
        return self.store.counters()

    def log(self) -> dict[str, Any]:
        """What the adapter has said so far."""
        return {"texts": self.said.texts}


def main() -> None:
    """Reads jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    jobs = Jobs()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = getattr(jobs, job.pop("job"))(**job)
        except ValueError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    jobs.close()


if __name__ == "__main__":
    main()
