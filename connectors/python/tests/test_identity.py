"""The fingerprint of weights: what it notices, and that what it reads has a bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from cairn_kv.adapters import identity
from cairn_kv.adapters.identity import (
    FINGERPRINT_BYTES,
    STRIPE_BYTES,
    STRIPES_PER_FILE,
    pieces_read,
    weights_fingerprint,
)

SIZE_BYTES = 12 << 20


def write_weights(path: Path, size_bytes: int = SIZE_BYTES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size_bytes))
    return path


def change(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"x")


@pytest.mark.parametrize("at", [0, FINGERPRINT_BYTES - 1, FINGERPRINT_BYTES, SIZE_BYTES // 2, SIZE_BYTES - 1])
def test_a_change_at_either_end_or_in_a_stripe_between_them_is_noticed(tmp_path: Path, at: int) -> None:
    weights = write_weights(tmp_path / "model.safetensors")
    piece = next(piece for piece in pieces_read(SIZE_BYTES, STRIPES_PER_FILE) if piece.stop > at)
    first = weights_fingerprint(tmp_path)
    change(weights, max(at, piece.start))
    assert weights_fingerprint(tmp_path) != first


def test_stripes_lie_so_close_that_a_layer_of_other_weights_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "model.safetensors")
    first = weights_fingerprint(tmp_path)
    gap_bytes = (SIZE_BYTES - 2 * FINGERPRINT_BYTES) // STRIPES_PER_FILE
    for at in range(0, SIZE_BYTES, 1 << 20):
        content = bytearray(SIZE_BYTES)
        content[at : at + gap_bytes] = b"x" * min(gap_bytes, SIZE_BYTES - at)
        weights.write_bytes(content)
        assert weights_fingerprint(tmp_path) != first, at


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    size_bytes = 2 * FINGERPRINT_BYTES + STRIPES_PER_FILE * STRIPE_BYTES
    for size in (0, 1, FINGERPRINT_BYTES, 2 * FINGERPRINT_BYTES + 1, size_bytes):
        assert sum(len(range(piece.start, piece.stop)) for piece in pieces_read(size, STRIPES_PER_FILE)) == size
    read = pieces_read(size_bytes + 64 * STRIPE_BYTES, STRIPES_PER_FILE)
    assert sum(piece.stop - piece.start for piece in read) == size_bytes


def test_a_model_that_is_one_file_has_a_fingerprint_and_one_that_is_a_hubs_name_has_none(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "model.gguf")
    first = weights_fingerprint(weights)
    change(weights, SIZE_BYTES // 2 - SIZE_BYTES // 2 % STRIPE_BYTES)
    change(weights, 0)
    assert first
    assert weights_fingerprint(weights) not in {first, ""}
    assert weights_fingerprint(Path("org/model")) == ""


def test_many_files_share_one_bound_of_stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def read(size_bytes: int, stripes: int) -> list[slice]:
        asked.append(stripes)
        return pieces_read(size_bytes, stripes)

    monkeypatch.setattr(identity, "pieces_read", read)
    for number in range(40):
        write_weights(tmp_path / f"{number}.safetensors", 8)
    assert weights_fingerprint(tmp_path)
    assert len(asked) == 40
    assert sum(asked) <= identity.STRIPES_MAX
    assert min(asked) >= 1
