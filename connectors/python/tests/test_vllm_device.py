"""Device memory of a vLLM: described through a driver of the test's own, offered to a real daemon, which refuses it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from daemon import Daemon, descriptor, eventually

from cairn_kv import CairnError, ErrorCode, Session
from cairn_kv.adapters.identity import Identity, NotServed
from cairn_kv.vllm.device import DeviceBlocks, Driver, Page
from cairn_kv.vllm.setup import _mind_memory

PAGE_BYTES = 4_096
BLOCKS = 8
IDENTITY = Identity(descriptor(row_bytes=2 * PAGE_BYTES), ("a", "b"), PAGE_BYTES, world=1)
LEGACY = 0x7F00_0000_0000
MAPPED = 0x7F80_0000_0000
SIZE_BYTES = 1 << 20

# A driver with one allocation of cudaMalloc and two neighbouring mappings of the virtual-memory calls, each of 1 MiB.
# Its exported descriptors are memfds; it counts the handles that were retained and not released.
SOURCE = """
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
static const uint64_t legacy = 0x7F0000000000u, mapped = 0x7F8000000000u, size = 1u << 20;
int retained = 0;
static int is_legacy(uint64_t p) { return p >= legacy && p < legacy + size; }
static int is_mapped(uint64_t p) { return p >= mapped && p < mapped + 2 * size; }
int cuInit(unsigned flags) { return flags; }
int cuPointerGetAttribute(void *out, int attribute, uint64_t p) {
  if (!is_legacy(p) && !is_mapped(p)) return 1;
  if (attribute == 9) *(int *)out = 3;
  else if (attribute == 10) *(int *)out = is_legacy(p);
  else return 1;
  return 0;
}
int cuMemGetAddressRange_v2(uint64_t *base, size_t *bytes, uint64_t p) {
  if (!is_legacy(p) && !is_mapped(p)) return 1;
  *base = is_legacy(p) ? legacy : mapped + (p - mapped) / size * size;
  *bytes = size;
  return 0;
}
int cuIpcGetMemHandle(void *handle, uint64_t p) {
  if (p != legacy) return 1;
  memset(handle, 0x5A, 64);
  return 0;
}
int cuMemRetainAllocationHandle(uint64_t *handle, void *p) {
  if (!is_mapped((uint64_t)p)) return 1;
  retained++;
  *handle = (uint64_t)p >= mapped + size ? 0xF00000002u : 0xF00000001u;
  return 0;
}
int cuMemExportToShareableHandle(void *out, uint64_t handle, int type, uint64_t flags) {
  if (type != 1 || flags != 0) return 1;
  if (handle != 0xF00000001u) return 801;
  *(int *)out = memfd_create("device", MFD_CLOEXEC);
  return 0;
}
int cuMemRelease(uint64_t handle) { (void)handle; retained--; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 40; return 0; }
int cuDeviceGetUuid_v2(void *uuid, int device) { memset(uuid, device, 16); return 0; }
"""
UUID = bytes([43]) * 16


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver of the test's own, compiled."""
    directory = tmp_path_factory.mktemp("driver")
    source, library = directory / "driver.c", directory / "libcuda.so.1"
    source.write_text(SOURCE)
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def driver(library: Path) -> Iterator[Driver]:
    """That driver; every handle that it gave must have come back."""
    import ctypes

    yield Driver(str(library))
    assert ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "retained").value == 0


class Tensor:
    """What is asked of a tensor in device memory: its blocks are bytes, `stride_bytes` apart."""

    def __init__(self, address: int, stride_bytes: int = PAGE_BYTES, kind: str = "cuda") -> None:
        self.device = SimpleNamespace(type=kind)
        self.shape = (BLOCKS, PAGE_BYTES)
        self._address, self._stride_bytes = address, stride_bytes

    def __getitem__(self, block: int) -> Any:
        return SimpleNamespace(is_contiguous=lambda: True, numel=lambda: PAGE_BYTES, element_size=lambda: 1)

    def data_ptr(self) -> int:
        return self._address

    def stride(self, dimension: int) -> int:
        assert dimension == 0
        return self._stride_bytes

    def element_size(self) -> int:
        return 1


def descriptors(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_memory_of_cuda_malloc_goes_by_its_handle_and_the_offset_from_its_start(driver: Driver) -> None:
    tensors = {"a": Tensor(LEGACY + 512), "b": Tensor(LEGACY + 512 + BLOCKS * PAGE_BYTES)}
    blocks = DeviceBlocks(IDENTITY, tensors, driver)
    (allocation,) = blocks.allocations
    assert (allocation.device_uuid, allocation.size_bytes) == (UUID, SIZE_BYTES)
    assert (allocation.ipc_handle, allocation.descriptor) == (b"Z" * 64, -1)
    assert blocks.blocks == BLOCKS
    assert blocks.pages == [Page(0, 512, PAGE_BYTES), Page(0, 512 + BLOCKS * PAGE_BYTES, PAGE_BYTES)]
    assert allocation.registration() == {
        "kind": "deviceMemory",
        "device": UUID,
        "sizeBytes": SIZE_BYTES,
        "ipcHandle": b"Z" * 64,
    }


def test_memory_of_the_virtual_memory_calls_goes_as_a_descriptor_that_is_closed_in_the_end(driver: Driver) -> None:
    before = descriptors()
    interleaved = {"a": Tensor(MAPPED, 2 * PAGE_BYTES), "b": Tensor(MAPPED + PAGE_BYTES, 2 * PAGE_BYTES)}
    blocks = DeviceBlocks(IDENTITY, interleaved, driver)
    (allocation,) = blocks.allocations
    assert allocation.ipc_handle == b""
    assert os.readlink(f"/proc/self/fd/{allocation.descriptor}").startswith("/memfd:device")
    assert allocation.registration() == {"kind": "deviceMemory", "device": UUID, "sizeBytes": SIZE_BYTES}
    assert blocks.pages == [Page(0, 0, 2 * PAGE_BYTES), Page(0, PAGE_BYTES, 2 * PAGE_BYTES)]
    assert descriptors() == before + 1
    blocks.close()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (Tensor(MAPPED + SIZE_BYTES - PAGE_BYTES), "more than one allocation"),
        (Tensor(MAPPED + SIZE_BYTES), "cuMemExportToShareableHandle gives 801"),
        (Tensor(0x1000), "cuMemGetAddressRange_v2 gives 1"),
    ],
)
def test_what_cannot_be_described_is_not_served_and_leaves_nothing_open(
    driver: Driver, second: Tensor, reason: str
) -> None:
    before = descriptors()
    with pytest.raises(NotServed, match=reason):
        DeviceBlocks(IDENTITY, {"a": Tensor(MAPPED), "b": second}, driver)
    assert descriptors() == before


def test_a_host_without_the_driver_is_not_served() -> None:
    with pytest.raises(NotServed, match="the CUDA driver cannot be called"):
        Driver("libcuda-of-nobody.so.1")


@pytest.mark.parametrize("address", [LEGACY, MAPPED])
def test_the_daemon_refuses_device_memory_by_name_and_serves_on(
    daemon: Daemon, library: Path, monkeypatch: pytest.MonkeyPatch, address: int
) -> None:
    monkeypatch.setattr("cairn_kv.vllm.setup.Driver", lambda: Driver(str(library)))
    tensors = {"a": Tensor(address), "b": Tensor(address + BLOCKS * PAGE_BYTES)}
    with Session(daemon.socket, f"device {address}", [IDENTITY.descriptor]) as session:
        assert session.wait_connected(30.0), session.last_error
        before = descriptors(), descriptors(daemon.pid)
        with pytest.raises(NotServed, match="memoryUnsupported"):
            _mind_memory(session, IDENTITY, tensors)
        assert descriptors() == before[0]
        eventually("the daemon closes what came", lambda: descriptors(daemon.pid) == before[1])
        with pytest.raises(CairnError) as refused:
            session.register_memory({"kind": "deviceMemory"})
        assert refused.value.code == ErrorCode.MEMORY_UNSUPPORTED
        assert session.statistics().connections_lost == 0
        window = session.create_window(2)
        assert session.registered(window)


def test_without_a_daemon_device_memory_is_not_served(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cairn_kv.vllm.setup.Driver", lambda: Driver(str(library)))
    with Session("/nowhere/engine.sock", "alone", [IDENTITY.descriptor]) as session:
        with pytest.raises(NotServed, match="a daemon that answers now"):
            _mind_memory(session, IDENTITY, {"a": Tensor(LEGACY), "b": Tensor(LEGACY + BLOCKS * PAGE_BYTES)})
        with pytest.raises(NotServed, match="xpu memory"):
            _mind_memory(session, IDENTITY, {"a": Tensor(LEGACY, kind="xpu"), "b": Tensor(LEGACY, kind="xpu")})


def test_blocks_in_the_hosts_memory_ask_nothing_of_any_driver() -> None:
    with Session("/nowhere/engine.sock", "host", [IDENTITY.descriptor]) as session:
        _mind_memory(session, IDENTITY, {"a": Tensor(0x1000, kind="cpu"), "b": Tensor(0x9000, kind="cpu")})
