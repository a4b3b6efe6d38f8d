"""An engine's blocks in device memory, described so that another process can map them.

CUDA has two kinds of memory. What cudaMalloc gave is opened elsewhere by a handle of 64 bytes, which names the whole
allocation, not the pointer: so the offset from the allocation's start goes along. What the virtual-memory calls mapped
(the engine's sleep mode) has no such handle: the physical allocation behind it is exported as a file descriptor, which
travels with its frame. Which of the two a pointer is, the driver says; nothing is concluded from how it was made.

A device is named by its UUID, since ordinals differ between processes. A tensor that several physical allocations lie
behind (PyTorch's expandable segments: thousands of them for one cache) is `NotServed`.

The driver's library is loaded when the first tensor in device memory comes, by its name, without any header or package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cairn_kv.adapters.identity import Identity, NotServed

from .rows import pages_of

IPC_HANDLE_BYTES: Final = 64
UUID_BYTES: Final = 16

# Numbers of cuda.h.
_DEVICE_ORDINAL: Final = 9
_IS_LEGACY_CUDA_IPC_CAPABLE: Final = 10
_POSIX_FILE_DESCRIPTOR: Final = 1

_POINTER: Final = ctypes.c_uint64
_SIGNATURES: Final[dict[str, list[Any]]] = {
    "cuInit": [ctypes.c_uint],
    "cuPointerGetAttribute": [ctypes.c_void_p, ctypes.c_int, _POINTER],
    "cuMemGetAddressRange_v2": [ctypes.POINTER(_POINTER), ctypes.POINTER(ctypes.c_size_t), _POINTER],
    "cuIpcGetMemHandle": [ctypes.c_void_p, _POINTER],
    "cuMemRetainAllocationHandle": [ctypes.POINTER(ctypes.c_uint64), ctypes.c_void_p],
    "cuMemExportToShareableHandle": [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64],
    "cuMemRelease": [ctypes.c_uint64],
    "cuDeviceGet": [ctypes.POINTER(ctypes.c_int), ctypes.c_int],
    "cuDeviceGetUuid_v2": [ctypes.c_void_p, ctypes.c_int],
}


class Driver:
    """The calls of libcuda that are needed here. Each raises NotServed with the call's name if the driver refuses."""

    def __init__(self, path: str = "libcuda.so.1") -> None:
        try:
            library = ctypes.CDLL(path)
            self._calls = {name: getattr(library, name) for name in _SIGNATURES}
        except (OSError, AttributeError) as error:
            raise NotServed(f"the CUDA driver cannot be called: {error}") from error
        for name, call in self._calls.items():
            call.argtypes, call.restype = _SIGNATURES[name], ctypes.c_int
        self._call("cuInit", 0)

    def allocation_of(self, pointer: int) -> tuple[int, int]:
        """(address, bytes) of the allocation, or of the mapping, that a pointer lies in."""
        base, size = _POINTER(), ctypes.c_size_t()
        self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), pointer)
        return base.value, size.value

    def device_uuid(self, pointer: int) -> bytes:
        """The UUID of the device that a pointer's memory is on; of a partition of it, the partition's."""
        ordinal, uuid = self._attribute(pointer, _DEVICE_ORDINAL), ctypes.create_string_buffer(UUID_BYTES)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ordinal)
        self._call("cuDeviceGetUuid_v2", uuid, device.value)
        return uuid.raw

    def has_ipc_handle(self, pointer: int) -> bool:
        """Whether the memory can be named by a handle of 64 bytes; else it is exported as a descriptor."""
        return self._attribute(pointer, _IS_LEGACY_CUDA_IPC_CAPABLE) != 0

    def ipc_handle(self, address: int) -> bytes:
        """The handle of the allocation that begins at an address."""
        handle = ctypes.create_string_buffer(IPC_HANDLE_BYTES)
        self._call("cuIpcGetMemHandle", handle, address)
        return handle.raw

    def export_descriptor(self, address: int) -> int:
        """A file descriptor, the caller's to close, of the physical allocation that is mapped at an address."""
        handle, descriptor = ctypes.c_uint64(), ctypes.c_int(-1)
        self._call("cuMemRetainAllocationHandle", ctypes.byref(handle), address)
        try:
            self._call("cuMemExportToShareableHandle", ctypes.byref(descriptor), handle, _POSIX_FILE_DESCRIPTOR, 0)
        finally:
            self._call("cuMemRelease", handle)
        return descriptor.value

    def _attribute(self, pointer: int, attribute: int) -> int:
        value = ctypes.c_int()
        self._call("cuPointerGetAttribute", ctypes.byref(value), attribute, pointer)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        result = self._calls[name](*arguments)
        if result != 0:
            raise NotServed(f"{name} gives {result}")


@dataclass(frozen=True)
class Allocation:
    """One allocation as another process may map it: by ``ipc_handle``, or by ``descriptor``, which is ours to close."""

    device_uuid: bytes
    size_bytes: int
    ipc_handle: bytes = b""
    descriptor: int = -1

    def registration(self) -> dict[str, object]:
        """REGISTER's body but for the namespace (docs/protocol.md); the descriptor travels with the frame."""
        body: dict[str, object] = {
            "kind": "deviceMemory",
            "device": self.device_uuid,
            "sizeBytes": self.size_bytes,
        }
        return {**body, "ipcHandle": self.ipc_handle} if self.ipc_handle else body


@dataclass(frozen=True)
class Page:
    """One layer's part of a block: block b is at ``offset_bytes + b · stride_bytes`` of ``allocation`` (an index)."""

    allocation: int
    offset_bytes: int
    stride_bytes: int


class DeviceBlocks:
    """Blocks of an engine in device memory: ``allocations``, and where each layer's pages lie in them."""

    def __init__(self, identity: Identity, tensors: Mapping[str, Any], driver: Driver) -> None:
        """Exports the allocations behind the tensors. Raises NotServed; then nothing is left open."""
        views, self.blocks = pages_of(identity, tensors)
        self.allocations: list[Allocation] = []
        self.pages: list[Page] = []
        held: dict[int, int] = {}
        try:
            for address, stride_bytes in views:
                span_bytes = (self.blocks - 1) * stride_bytes + identity.page_bytes
                base, size_bytes = _allocation_around(driver, address, span_bytes)
                if base not in held:
                    held[base] = len(self.allocations)
                    self.allocations.append(_exported(driver, base, size_bytes))
                self.pages.append(Page(held[base], address - base, stride_bytes))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the descriptors; whoever has mapped the memory keeps it."""
        while self.allocations:
            descriptor = self.allocations.pop().descriptor
            if descriptor != -1:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


def _allocation_around(driver: Driver, address: int, span_bytes: int) -> tuple[int, int]:
    base, size_bytes = driver.allocation_of(address)
    if not base <= address <= address + span_bytes <= base + size_bytes:
        raise NotServed("the blocks of a layer lie in more than one allocation (expandable segments?)")
    return base, size_bytes


def _exported(driver: Driver, base: int, size_bytes: int) -> Allocation:
    uuid = driver.device_uuid(base)
    if driver.has_ipc_handle(base):
        return Allocation(uuid, size_bytes, ipc_handle=driver.ipc_handle(base))
    return Allocation(uuid, size_bytes, descriptor=driver.export_descriptor(base))
