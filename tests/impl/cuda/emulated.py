"""The CUDA library as the emulator runs it: a device whose memory is the host's. CPU tensors serve."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from impl.native.cuda.library import CudaLibrary
from impl.native.cuda.proven import NEED_PROOF

#: Kernels that an emulated device of architecture 8.0 refuses.
FOR_HOPPER = ("wgmma", "bgmma")


class EmulatedLibrary(CudaLibrary):
    """Everything of :class:`CudaLibrary` but what torch knows of GPUs: that is answered here."""

    recording = False
    """Whether the "stream" is being captured into a graph."""
    device_name = "Emulated GPU"
    driver_version = "1.0"

    @property
    def kernels_here(self) -> list[str]:
        """Those that need no proof, which a device of architecture 8.0 can run, as the emulated ones are."""
        return [kernel for kernel in self.kernels if kernel not in NEED_PROOF]

    def check_torch(self) -> None:
        """torch need see no GPU."""

    def name_of(self, index: int) -> str:
        return f"{self.device_name} {index}"

    def driver(self) -> str:
        return self.driver_version

    def index_of(self, tensor: Tensor) -> int:
        assert tensor.device.type == "cpu"
        return 0

    def device(self, index: int) -> torch.device:
        return torch.device("cpu")

    def stream(self, index: int) -> int:
        return 0

    def capturing(self, index: int) -> bool:
        return self.recording

    def emulate(self, architecture: int, multiprocessors: int, device: int = 0) -> None:
        """What the device is from now on."""
        function = self.handle.bitimpl_emulate_device
        function.restype, function.argtypes = None, [ctypes.c_int] * 3
        function(device, architecture, multiprocessors)
