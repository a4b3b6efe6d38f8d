"""Keys, rows, the pattern, windows, the table of errors: the parts that need no daemon."""

from __future__ import annotations

import fcntl
import os
import random
import re
import subprocess
import sys
from array import array

import pytest
from daemon import ROOT, descriptor

from cairn_kv import BlockError, CairnError, DeadlineExceeded, ErrorCode, Session, Unavailable, Window, layout_pattern
from cairn_kv.errors import Failure
from cairn_kv.keys import count_keys, pack_numbers, pack_pairs, slice_keys

MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    """As docs/protocol.md writes it."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_the_pattern_is_splitmix64_word_by_word(chance: random.Random) -> None:
    for size in (1, 7, 8, 9, 4_096, 8 * 32_768 + 12):
        seed = chance.randrange(1, 2**31)
        words = [splitmix64(((seed << 32) + index) & MASK) for index in range(-(-size // 8))]
        assert layout_pattern(seed, size) == b"".join(word.to_bytes(8, "little") for word in words)[:size]


def test_keys_of_a_list_and_of_a_buffer_are_the_same_bytes() -> None:
    keys = [bytes([number]) * 32 for number in range(5)]
    data = b"".join(keys)
    for spelled in (keys, tuple(keys), data, bytearray(data), memoryview(data), memoryview(array("Q", data))):
        assert count_keys(spelled, 32) == 5
        assert bytes(slice_keys(spelled, 32, 0, 5)) == data
        assert bytes(slice_keys(spelled, 32, 2, 4)) == data[64:128]


def test_a_buffer_of_keys_is_not_copied() -> None:
    data = bytearray(64)
    part = slice_keys(data, 32, 1, 2)
    data[32] = 9
    assert part[0] == 9


def test_keys_that_do_not_fit_the_namespace_are_refused() -> None:
    with pytest.raises(ValueError, match="left over"):
        count_keys(bytes(33), 32)
    with pytest.raises(ValueError, match="32 bytes long"):
        slice_keys([bytes(32), bytes(16)], 32, 0, 2)
    with pytest.raises(ValueError, match="contiguous"):
        slice_keys(memoryview(bytes(128))[::2], 32, 0, 2)


def test_rows_are_packed_little_endian() -> None:
    packed = b"\x01\0\0\0\xff\xff\xff\xff"
    for rows in ([1, 2**32 - 1], (1, 2**32 - 1), array("I", [1, 2**32 - 1]), packed):
        assert bytes(pack_numbers(rows, 2)) == packed
    assert bytes(pack_numbers(range(3), 3)) == b"\0\0\0\0\x01\0\0\0\x02\0\0\0"
    assert bytes(pack_pairs([0, 5], [7, 8])) == b"\0\0\0\0\x07\0\0\0\x05\0\0\0\x08\0\0\0"
    with pytest.raises(ValueError, match="3 rows for 2 keys"):
        pack_numbers([1, 2, 3], 2)
    with pytest.raises(OverflowError):
        pack_numbers([-1], 1)
    with pytest.raises(ValueError, match="1 rows for 2 positions"):
        pack_pairs([0, 1], [7])


def test_the_enumeration_of_errors_is_the_daemon_s_table() -> None:
    table = re.findall(r"^\| (\d+) \| `(\w+)` \| (yes|no) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert len(table) > 50
    ours = [(str(int(code)), code.wire_name, "yes" if code.retryable else "no") for code in ErrorCode]
    assert ours == table


def test_an_unknown_code_reads_as_internal_and_each_family_has_its_exception() -> None:
    assert ErrorCode.read(98_765) is ErrorCode.INTERNAL
    assert type(CairnError.of(Failure(ErrorCode.UNAVAILABLE, ""))) is Unavailable
    assert type(CairnError.of(Failure(ErrorCode.DEADLINE_EXCEEDED, ""))) is DeadlineExceeded
    assert type(CairnError.of(Failure(ErrorCode.LEDGER_FULL, ""))) is BlockError
    assert str(CairnError.of(Failure(ErrorCode.LEDGER_FULL, "no room"))) == "ledgerFull: no room"


def test_a_window_s_rows_lie_where_the_geometry_says() -> None:
    window = Window(0, descriptor(), 4, 5_000, 100, None)
    window.make()
    assert window.size_bytes == 20_480
    window.row(3)[:] = b"r" * 4_096
    assert bytes(window.memory[100 + 3 * 5_000 : 100 + 3 * 5_000 + 4_096]) == b"r" * 4_096
    with pytest.raises(IndexError):
        window.row(4)
    window.release()


def test_a_window_s_memory_is_sealed_against_growing_and_shrinking() -> None:
    window = Window(0, descriptor(), 4, 4_096, 0, None)
    window.make()
    seals = fcntl.fcntl(window.descriptor_to_send(), fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_SHRINK
    assert seals & fcntl.F_SEAL_GROW
    window.release()


def test_memory_that_could_shrink_under_the_client_is_not_mapped() -> None:
    window = Window(0, descriptor(), 4, 4_096, 0, None)
    memfd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, window.size_bytes)
    with pytest.raises(ValueError, match="sealed"):
        window.adopt(memfd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memfd)


def test_an_unsettled_window_gets_other_memory_under_the_same_views() -> None:
    window = Window(0, descriptor(), 4, 4_096, 0, None)
    window.make()
    view = window.row(2)
    view[:4] = b"kept"
    old = os.dup(window.descriptor_to_send())
    window.invalidate(unsettled=True)
    window.settle()
    assert not window.broken
    assert bytes(view[:4]) == b"kept"
    os.pwrite(old, b"late", 2 * 4_096)
    assert bytes(view[:4]) == b"kept"
    view[:4] = b"mine"
    assert os.pread(window.descriptor_to_send(), 4, 2 * 4_096) == b"mine"
    assert window.generation == 1
    os.close(old)
    window.release()


def test_a_settled_window_keeps_its_memory() -> None:
    window = Window(0, descriptor(), 4, 4_096, 0, None)
    window.make()
    before = window.descriptor_to_send()
    window.invalidate(unsettled=False)
    window.settle()
    assert window.descriptor_to_send() == before
    window.release()


def test_windows_that_make_no_sense_are_refused() -> None:
    for blocks, stride, offset in ((0, 4_096, 0), (1, 4_095, 0), (1, 4_096, -1), (2**20, 2**40, 0)):
        with pytest.raises(ValueError, match=r".+"):
            Window(0, descriptor(), blocks, stride, offset, None)


def test_sessions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="namespaces"):
        Session("/nowhere", "e", [])
    with pytest.raises(ValueError, match="rank"):
        Session("/nowhere", "e", [descriptor()], rank=1, ranks=1)
    with pytest.raises(ValueError, match="key_bytes"):
        Session("/nowhere", "e", [descriptor(key_bytes=33)])


def test_the_core_imports_no_tensor_library_and_no_engine() -> None:
    program = "import sys, cairn_kv; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'vllm', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
