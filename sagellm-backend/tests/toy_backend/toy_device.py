"""A backend somebody else might ship: the reference's operations, but weights that it keeps as int8 blocks itself."""

from __future__ import annotations

from sagellm_backend import formats
from sagellm_backend.dtypes import TORCH
from sagellm_backend.reference import ReferenceBackend
from sagellm_protocol.backend import WeightFormat
from sagellm_protocol.devices import DeviceInfo


class KeptWeight:
    """A matrix that stays in the blocks of its file until it is multiplied."""

    def __init__(self, parts, bias, dtype):
        self._parts = parts
        self.bias = bias
        self._dtype = dtype
        self.shape = (sum(raw.shape[0] for raw, _ in parts), parts[0][0].shape[1])
        self.nbytes = sum(memoryview(raw.data).nbytes for raw, _ in parts)

    @property
    def matrix(self):
        return formats.torch.cat([formats.expand(raw, kind, self._dtype) for raw, kind in self._parts])


class ToyBackend(ReferenceBackend):
    name = "toy"

    @property
    def device(self):
        return DeviceInfo(kind="toy", name="Toy accelerator", cores=1)

    def capabilities(self):
        kept = tuple(kind.value for kind in WeightFormat)
        return (
            super()
            .capabilities()
            .model_copy(update={"backend": self.name, "devices": (self.device,), "kept_quantized": kept, "rank": -1})
        )

    def pack_weight(self, parts, dtype, *, use=None, bias=(), quantization=None):
        self.check_dtype(dtype)
        vector = formats.torch.cat([self.tensor(part, dtype) for part in bias]) if bias else None
        return KeptWeight(self.stored(parts, quantization), vector, TORCH[dtype])


def create(device=None, *, dtype="auto", threads=None):
    return ToyBackend()
