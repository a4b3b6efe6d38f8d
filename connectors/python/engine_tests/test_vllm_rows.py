"""What an incarnation proof takes for the same block: judged with the engine's own torch, in a process of its own."""

from __future__ import annotations

import json
import subprocess

import pytest

from cairn_kv.verify.engine import environment
from engines import engine_python

#: Prints what `same_values` says of each pair of rows, by the pair's name.
PROGRAM = """
import json, torch
from cairn_kv.adapters.proof import numbers_of, same_values

generator = torch.Generator().manual_seed(1)
numbers = torch.randn(4_000, generator=generator)
scale = float(numbers.square().mean().sqrt())
other = torch.randn(4_000, generator=generator)


def row(values, dtype):
    return bytes(values.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())


def off(share, by):
    values = numbers.clone()
    values[: int(share * len(values))] += by * scale
    return values


def says(stored, computed, tensor_dtype, cache_dtype="auto"):
    dtype, quantised = numbers_of(tensor_dtype, cache_dtype)
    return same_values(memoryview(stored), computed, dtype, quantised)


verdicts = {}
for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
    own = row(numbers, dtype)
    for pair, values in {
        "equal": numbers,
        "rounded": numbers * (1 + 2.0**-7),
        "all off by a little": off(1.0, 0.028),
        "all off by more": off(1.0, 0.035),
        "nine in a thousand off by far": off(0.009, 5.0),
        "eleven in a thousand off by far": off(0.011, 5.0),
        "another prompt": other,
        "zeros": torch.zeros(4_000),
        "not a number": torch.where(torch.arange(4_000) == 7, torch.nan, numbers),
    }.items():
        verdicts[f"{name}: {pair}"] = says(row(values, dtype), own, dtype)
    verdicts[f"{name}: of zeros computed"] = says(own, row(torch.zeros(4_000), dtype), dtype)
    verdicts[f"{name}: shorter"] = says(own[:-8], own, dtype)
for cache, kind in (("fp8", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2), ("int8", torch.int8)):
    spread = 25 if kind is torch.int8 else 1
    own = row(numbers * spread, kind)
    tensor_dtype = torch.int8 if kind is torch.int8 else torch.uint8
    for pair, values in {
        "equal": numbers,
        "a step off": numbers * 1.06 + 0.02,
        "turned by more": numbers + 0.2 * other,
        "another prompt": other,
        "zeros": torch.zeros(4_000),
    }.items():
        verdicts[f"{cache}: {pair}"] = says(row(values * spread, kind), own, tensor_dtype, cache)
# Rows of 64 heads' vectors of 128 channels, the first half of them keys. What a few large numbers could hide:
kept = torch.randn(64, 128, generator=generator)
unlike = torch.randn(64, 128, generator=generator)
noise = torch.randn(64, 128, generator=generator)


def biased(values, by):
    values = values.clone()
    values[:32, [3, 40, 77, 119]] += by
    return values.flatten()


def small(values, halves):
    values = values.clone()
    values[32:] *= halves
    return values.flatten()


def spiked(values):
    values = values.flatten().clone()
    values[5] = 1e20
    return values


for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
    for pair, stored, computed in (
        ("rounding under a large bias", biased(kept + 0.005 * noise, 2_000), biased(kept, 2_000)),
        ("another prompt under a large bias", biased(unlike, 2_000), biased(kept, 2_000)),
        ("rounding of small values", small(kept + 0.005 * noise, 1e-3), small(kept, 1e-3)),
        ("other small values", small(torch.cat([kept[:32], unlike[32:]]), 1e-3), small(kept, 1e-3)),
        ("an enormous number in both", spiked(unlike), spiked(kept)),
    ):
        verdicts[f"{name}, uneven: {pair}"] = says(row(stored, dtype), row(computed, dtype), dtype)
for cache, kind, spread, bias in (
    ("fp8", torch.float8_e4m3fn, 1, 300),
    ("fp8_e5m2", torch.float8_e5m2, 1, 300),
    ("int8", torch.int8, 1, 120),
):
    tensor_dtype = torch.int8 if kind is torch.int8 else torch.uint8
    own = row(biased(kept * spread, bias), kind)
    for pair, values in (
        ("rounding under a large bias", kept + 0.005 * noise),
        ("another prompt under a large bias", unlike),
    ):
        stored = row(biased(values * spread, bias), kind)
        verdicts[f"{cache}, uneven: {pair}"] = says(stored, own, tensor_dtype, cache)
packed = row(numbers, torch.float32)
verdicts["nvfp4: equal"] = says(packed, packed, torch.uint8, "nvfp4")
verdicts["nvfp4: one bit off"] = says(packed[:-1] + bytes([packed[-1] ^ 1]), packed, torch.uint8, "nvfp4")
print(json.dumps(verdicts))
"""

FLOATS = {
    "equal": True,
    "rounded": True,
    "all off by a little": True,
    "all off by more": False,
    "nine in a thousand off by far": True,
    "eleven in a thousand off by far": False,
    "another prompt": False,
    "zeros": False,
    "not a number": False,
    "of zeros computed": False,
    "shorter": False,
}
UNEVEN = {
    "rounding under a large bias": True,
    "another prompt under a large bias": False,
    "rounding of small values": True,
    "other small values": False,
    "an enormous number in both": False,
}
UNEVEN_QUANTISED = {"rounding under a large bias": True, "another prompt under a large bias": False}
QUANTISED = {"equal": True, "a step off": True, "turned by more": False, "another prompt": False, "zeros": False}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, bool]:
    """What is said of each pair."""
    command = [engine_python(), "-c", PROGRAM]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    said: dict[str, bool] = json.loads(ended.stdout)
    return said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_the_same_if_one_number_in_a_hundred_at_most_is_off_by_more_than_rounding(
    verdicts: dict[str, bool], dtype: str
) -> None:
    assert {pair: verdicts[f"{dtype}: {pair}"] for pair in FLOATS} == FLOATS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_few_large_numbers_do_not_hide_that_the_others_differ(verdicts: dict[str, bool], dtype: str) -> None:
    assert {pair: verdicts[f"{dtype}, uneven: {pair}"] for pair in UNEVEN} == UNEVEN


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e5m2", "int8"])
def test_a_few_large_numbers_do_not_hide_that_the_others_point_elsewhere(verdicts: dict[str, bool], dtype: str) -> None:
    assert {pair: verdicts[f"{dtype}, uneven: {pair}"] for pair in UNEVEN_QUANTISED} == UNEVEN_QUANTISED


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e5m2", "int8"])
def test_quantised_rows_are_the_same_if_they_point_in_one_direction(verdicts: dict[str, bool], dtype: str) -> None:
    assert {pair: verdicts[f"{dtype}: {pair}"] for pair in QUANTISED} == QUANTISED


def test_rows_that_pack_scales_among_their_numbers_are_the_same_only_if_their_bytes_are(
    verdicts: dict[str, bool],
) -> None:
    assert {name: said for name, said in verdicts.items() if name.startswith("nvfp4")} == {
        "nvfp4: equal": True,
        "nvfp4: one bit off": False,
    }
