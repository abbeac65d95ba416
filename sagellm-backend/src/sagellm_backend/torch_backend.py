"""What every torch backend on the host's memory does alike: tensors, the paged pool, collectives, honest refusals.

Operations are its subclasses' own. Knows nothing of models, requests or scheduling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from typing import Any, NoReturn

import torch
from typing_extensions import Buffer

from sagellm_protocol.backend import FusableUnit, Graph, KVSpec, MemoryInfo, RawWeight, WeightFormat
from sagellm_protocol.devices import DeviceInfo, DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

from . import collectives, formats, host
from .collectives import TorchGroup
from .dtypes import TORCH, host_tensor
from .formats import quantize
from .paged import PagedKV, Pool

logger = logging.getLogger(__name__)


class TorchBackend:
    """Base of the backends whose tensors are torch's, in host memory."""

    name: str
    dtypes: tuple[DType, ...]
    """Types it computes in, preferred first."""
    quantizations: tuple[str, ...] = tuple(quantize.QUANTIZATIONS)
    """What weights can be quantised to at load."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    @property
    def device(self) -> DeviceInfo:
        """The processor, with the memory that is free now."""
        return host.cpu_device()

    def memory(self) -> MemoryInfo:
        """What the host and the cgroups leave to this process."""
        return host.memory_info()

    # -- tensors ------------------------------------------------------------------------------------------------------

    def tensor(self, raw: RawWeight, dtype: DType) -> torch.Tensor:
        """A raw weight as a plain tensor of its logical shape."""
        return formats.expand(raw, formats.format_of(raw, self.name), TORCH[dtype])

    def from_host(self, values: Sequence[int] | Sequence[float] | Buffer, dtype: DType) -> torch.Tensor:
        """Host numbers as a one-dimensional tensor; a buffer holds elements of ``dtype``."""
        return host_tensor(values, TORCH[dtype])

    def to_host(self, tensor: torch.Tensor) -> list[Any]:
        """A tensor's values as nested lists."""
        values: list[Any] = tensor.tolist()
        return values

    def empty(self, shape: tuple[int, ...], dtype: DType) -> torch.Tensor:
        """An uninitialised tensor."""
        return torch.empty(shape, dtype=TORCH[dtype])

    def concat(self, tensors: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
        """Join tensors along ``axis``."""
        return torch.cat(list(tensors), dim=axis)

    def synchronize(self) -> None:
        """Nothing is ever pending on the host."""

    def take_rows(self, x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """``x[rows]``."""
        return x.index_select(0, torch.tensor(rows, dtype=torch.int64))

    def segment_sum(self, x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Sums over the rows of each sequence, in float32."""
        return torch.stack([rows.sum(0, dtype=torch.float32) for rows in x.split(list(lengths))])

    def headwise(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Each head through a matrix of its own."""
        return torch.bmm(x.transpose(0, 1), weight).transpose(0, 1)

    # -- weights ------------------------------------------------------------------------------------------------------

    def stored(
        self, parts: Sequence[RawWeight], quantization: str | None, kept: Container[WeightFormat] = formats.DECODERS
    ) -> list[quantize.Stored]:
        """Parts of a weight with their formats, quantised if that is asked for.

        Args:
            parts: Matrices of equal E.
            quantization: What to quantise to, among :attr:`quantizations`.
            kept: Formats that stay as they are stored, if they are small enough. Where every weight is expanded there
                is nothing to gain by quantising one again, so all of them are.

        Raises:
            SageLLMError: ``UNSUPPORTED`` for a format or a quantisation that is not offered.
        """
        self.check_quantization(quantization)
        found = [(part, formats.format_of(part, self.name)) for part in parts]
        if quantization is None:
            return found
        packed = quantize.quantized(found, quantization, kept)
        for (part, kind), (made, _) in zip(found, packed, strict=True):
            if made is part:
                small = f"stored as {kind.value}, it is no larger already"
                reason = small if quantize.fits(part) else f"its rows are no whole blocks of {quantize.BLOCK}"
                self.warn_once(f"{part.name} is not quantised to {quantization} but left as it is: {reason}", reason)
        return packed

    def warn_once(self, message: str, reason: str) -> None:
        """Log a warning, unless one was logged for the same reason before: weights come by the hundred."""
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("%s (said once)", message)

    # -- the pool -----------------------------------------------------------------------------------------------------

    def allocate_kv(self, specs: Sequence[KVSpec], num_blocks: int, block_size: int, dtype: DType) -> Pool:
        """A pool of ``num_blocks`` blocks for each layer, untouched until written."""
        self.check_dtype(dtype)
        return PagedKV(specs, num_blocks, block_size, TORCH[dtype])

    def copy_blocks(self, cache: Pool, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks ``source → target`` in every layer."""
        cache.copy(pairs)

    def export_blocks(self, cache: Pool, blocks: Sequence[int]) -> bytes:
        """The blocks' contents in every layer."""
        return cache.export(blocks)

    def import_blocks(self, cache: Pool, blocks: Sequence[int], data: Buffer) -> None:
        """Write contents that :meth:`export_blocks` made into ``blocks``."""
        cache.load(blocks, data)

    # -- larger units, graphs, ranks ----------------------------------------------------------------------------------

    def fuse(self, unit: FusableUnit) -> Callable[..., Any] | None:
        """No larger unit is claimed."""
        return None

    def capture(self, run: Callable[[], None]) -> Graph:
        """Refused: nothing on the host is captured."""
        raise SageLLMError(
            ErrorCode.UNSUPPORTED, f"backend {self.name!r} captures no graphs; call the computation itself each step"
        )

    def make_group(self, rank: int, size: int, rendezvous: str) -> TorchGroup:
        """Join ranks that meet at ``rendezvous``."""
        return collectives.make_group(rank, size, rendezvous)

    def all_reduce(self, x: torch.Tensor, group: TorchGroup) -> torch.Tensor:
        """Sum over ranks."""
        return group.all_reduce(x)

    def all_gather(self, x: torch.Tensor, group: TorchGroup, axis: int) -> torch.Tensor:
        """Join ranks' tensors along ``axis``."""
        return group.all_gather(x, axis)

    # -- refusals -----------------------------------------------------------------------------------------------------

    def check_dtype(self, dtype: DType) -> None:
        """Refuse a type this backend does not compute in."""
        if dtype not in self.dtypes:
            offered = ", ".join(known.value for known in self.dtypes)
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"backend {self.name!r} does not compute in {dtype.value} here; it offers {offered}",
            )

    def check_quantization(self, quantization: str | None) -> None:
        """Refuse quantising to what this backend does not offer."""
        if quantization is not None and quantization not in self.quantizations:
            offered = ", ".join(self.quantizations) or "none"
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"backend {self.name!r} does not quantise to {quantization!r} at load; it offers {offered}."
                " Name one of these, or leave quantization out",
                "quantization",
            )

    def _refuse(self, what: str) -> NoReturn:
        raise SageLLMError(ErrorCode.UNSUPPORTED, f"backend {self.name!r} does not {what}")


def check_device(device: str | None, backend: str) -> None:
    """Refuse a device that a host backend does not drive.

    Raises:
        SageLLMError: ``UNSUPPORTED``, naming the device that it does drive.
    """
    if device not in (None, "auto", "cpu", "cpu:0", backend):
        raise SageLLMError(
            ErrorCode.UNSUPPORTED, f"backend {backend!r} drives the device 'cpu', not {device!r}", "device"
        )


def use_threads(threads: int | None) -> int:
    """Let torch use ``threads`` processors, or by default what :func:`~.host.compute_threads` says; returns the number.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for fewer than one.
    """
    if threads is not None and threads < 1:
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"threads is {threads}; it must be at least 1", "threads")
    wanted = threads if threads is not None else host.compute_threads()
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    return wanted
