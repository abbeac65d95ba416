"""The operations of the default backend, each in as few torch calls as it takes, or in native kernels.

Computing in BF16 with native kernels at hand, weights are theirs: block formats stay quantised, and a decoder's whole
step is one call. In float32 everything is torch's, and exact.

A torch call costs 2 to 5 microseconds and a decode step of a small model makes hundreds, so their number matters as
much as what they do; calls that mix element types are avoided because torch runs those element by element. Knows
nothing of models, requests or scheduling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from sagellm_backend import collectives, formats, host
from sagellm_backend.adapters import add_low_rank
from sagellm_backend.dtypes import TORCH, parse_dtype
from sagellm_backend.paged import PagedKV, Pool
from sagellm_backend.torch_backend import TorchBackend, check_device, use_threads
from sagellm_protocol.backend import (
    AdaptedRows,
    AttentionBatch,
    FusableUnit,
    GateSpec,
    KVSpec,
    RawWeight,
    RopeSpec,
    RoutingSpec,
    RowLogprobs,
    Sampled,
    SamplingBatch,
    WeightFormat,
    WeightUse,
)
from sagellm_protocol.devices import BackendCapabilities, DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

from . import attention, native, sampling, segments, weights
from .experts import mix, route
from .multipliable import REWRITTEN, multipliable
from .native import NativeMatrix
from .plan import StepPlan, plan_step
from .rotary import Rotary
from .segments import SegmentPlan
from .weights import CpuWeight

_PLAIN = (WeightFormat.F32, WeightFormat.F16, WeightFormat.BF16)
_NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16"})


class CpuBackend(TorchBackend):
    """Fast torch on the processor. Made by :func:`create`."""

    name = "cpu"

    def __init__(self, dtype: DType, kernels: native.Library | None = None) -> None:
        super().__init__()
        self.dtypes = (dtype, *(other for other in offered_dtypes() if other is not dtype))
        self._kernels = kernels
        self._store = native.MatrixStore()
        self._rotary = Rotary()
        self._norm_floors: dict[tuple[int, float], torch.Tensor] = {}

    def capabilities(self) -> BackendCapabilities:
        """What this processor and this build of torch can do."""
        native_formats = (*native.KINDS, *REWRITTEN, WeightFormat.F8_E4M3)
        return BackendCapabilities(
            backend=self.name,
            available=True,
            devices=(host.cpu_device(),),
            dtypes=self.dtypes,
            kv_dtypes=(*self.dtypes, DType.INT8) if self._kernels else self.dtypes,
            weight_formats=tuple(kind.value for kind in formats.DECODERS),
            kept_quantized=tuple(kind.value for kind in native_formats) if self._kernels else (),
            quantizations=self.quantizations,
            fused_units=("decoder",) if self._kernels else (),
            native_kernels=self._kernels.build if self._kernels else None,
            collectives=collectives.available_transports(),
            rank=10,
        )

    # -- weights ------------------------------------------------------------------------------------------------------

    def pack_weight(
        self,
        parts: Sequence[RawWeight],
        dtype: DType,
        *,
        use: WeightUse = WeightUse.LINEAR,
        bias: Sequence[RawWeight] = (),
        quantization: str | None = None,
    ) -> CpuWeight | NativeMatrix:
        """Lay it out for native kernels, or expand it to ``dtype`` and pack it for oneDNN.

        Quantised, it takes fewer bytes with native kernels alone. Without them it is expanded again: it has the same
        values, and a warning says that it takes as much memory as before.
        """
        self.check_dtype(dtype)
        native_dtype = self._kernels is not None and dtype is DType.BFLOAT16
        columns = None
        if native_dtype:
            parts, columns = multipliable(parts, self.name, reordered=use is WeightUse.LINEAR)
        stored = self.stored(parts, quantization, native.KINDS if native_dtype else formats.DECODERS)
        if quantization is not None and not native_dtype:
            without = "without native kernels" if self._kernels is None else f"in {dtype.value}"
            reason = f"{quantization} saves no memory and no time {without}"
            self.warn_once(f"{reason}: weights get the quantised values, but are expanded to be multiplied", reason)
        biases = [self.tensor(part, dtype) for part in bias]
        # A table that is only looked up is left in its file's pages, unless the kernels can keep it as small.
        packable = use is not WeightUse.EMBEDDING or all(kind in native.KINDS or kind in _PLAIN for _, kind in stored)
        if self._kernels is not None and native_dtype and packable:
            for part, kind in stored:
                if kind in (WeightFormat.INT4, WeightFormat.INT8):
                    reason = "it has no blocks of 32 columns under one scale that float16 holds"
                    self.warn_once(f"{part.name}, stored as {kind.value}, is expanded to BF16: {reason}", reason)
            return NativeMatrix(self._kernels, self._store, stored, torch.cat(biases) if biases else None, columns)
        return weights.pack(
            stored,
            dtype,
            biases,
            multiplied=use is not WeightUse.EMBEDDING,
            looked_up=use is not WeightUse.LINEAR,
        )

    def linear(
        self,
        x: torch.Tensor,
        weight: CpuWeight | NativeMatrix,
        adapters: Sequence[AdaptedRows[torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """``x @ weight.T + bias``, and what adapters add."""
        if isinstance(weight, CpuWeight) and x.dtype != weight.dtype:
            y = weight.linear(x.to(weight.dtype)).to(x.dtype)
        else:
            y = weight.linear(x)
        return add_low_rank(y, x, adapters) if adapters else y

    def embedding(self, ids: torch.Tensor, weight: CpuWeight | NativeMatrix, dtype: DType) -> torch.Tensor:
        """Rows of a table."""
        return weight.rows(ids, TORCH[dtype])

    def fuse(self, unit: FusableUnit) -> Callable[..., torch.Tensor] | None:
        """A decoder whose parts the native kernels know, where the pool is theirs too."""
        if self._kernels is None or unit.kind != "decoder" or self.dtypes[0] is not DType.BFLOAT16:
            return None
        return native.fuse_decoder(self._kernels, unit)

    # -- norms, activations, rotation ---------------------------------------------------------------------------------

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """``x / sqrt(mean(x²) + eps) * weight``, as ``x / hypot(‖x‖, sqrt(E eps)) * sqrt(E) * weight``."""
        h = x.float()
        size = x.shape[-1]
        floor = self._norm_floors.get((size, eps))
        if floor is None:
            floor = self._norm_floors[size, eps] = torch.tensor(math.sqrt(eps))
        # The norm of h / sqrt(E) is the root of the mean square.
        root = torch.linalg.vector_norm(h, 2, -1, True).mul_(size**-0.5).hypot_(floor)
        if x.dtype == torch.float32:
            return h.div(root).mul_(weight)
        return h.div_(root).to(x.dtype).mul_(weight)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum's norm, and the sum in ``residual``'s place."""
        total = residual.add_(x)
        return self.rms_norm(total, weight, eps), total

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
        """Layer norm over the last axis."""
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def rope(
        self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, spec: RopeSpec
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate in place."""
        return self._rotary.turn(q, k, positions, spec)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """``silu(gate) * up``."""
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    def gelu_mul(self, gate_up: torch.Tensor, *, approximate: bool) -> torch.Tensor:
        """``gelu(gate) * up``."""
        gate, up = gate_up.chunk(2, -1)
        return F.gelu(gate, approximate="tanh" if approximate else "none").mul_(up)

    def gelu(self, x: torch.Tensor, *, approximate: bool) -> torch.Tensor:
        """``gelu(x)``."""
        return F.gelu(x, approximate="tanh" if approximate else "none")

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        """``cap * tanh(x / cap)``, rounded once: a quotient in BF16 would lose what a large cap leaves of it."""
        return x.float().div(cap).tanh_().mul_(cap).to(x.dtype)

    def route(
        self,
        x: torch.Tensor,
        router: CpuWeight | NativeMatrix,
        spec: RoutingSpec,
        correction: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose each token's experts."""
        return route(self.linear(x.float(), router), spec, correction)

    def moe(
        self,
        x: torch.Tensor,
        experts: torch.Tensor,
        shares: torch.Tensor,
        gate_up: Sequence[CpuWeight | NativeMatrix],
        down: Sequence[CpuWeight | NativeMatrix],
        gate: GateSpec,
    ) -> torch.Tensor:
        """Expert by expert, over the tokens that chose it."""
        gated = self._gate(replace(gate, shares_first=False))
        return mix(x, experts, shares, gate_up, down, self.linear, gated, shares_first=gate.shares_first)

    def _gate(self, spec: GateSpec) -> Callable[[torch.Tensor], torch.Tensor]:
        if spec == GateSpec(spec.activation):
            if spec.activation == "silu":
                return self.silu_mul
            return partial(self.gelu_mul, approximate=spec.activation == "gelu_tanh")
        return partial(_bounded_gate, spec)

    # -- attention ----------------------------------------------------------------------------------------------------

    def allocate_kv(self, specs: Sequence[KVSpec], num_blocks: int, block_size: int, dtype: DType) -> Pool:
        """A pool of ``num_blocks`` blocks for each layer, untouched until written: the kernels' where they attend."""
        torchs = any(spec.sinks or spec.chunked for spec in specs)
        ours = self._kernels is not None and native.fits(specs) and not torchs
        if dtype is DType.INT8:
            if not ours:
                self._refuse(
                    "keep keys and values in int8 here: that takes native kernels, heads of a multiple of 16 up to 256,"
                    " and neither sinks, chunks nor latent attention"
                )
        else:
            self.check_dtype(dtype)
        if self._kernels is None or not ours or (dtype is not DType.INT8 and self.dtypes[0] is not DType.BFLOAT16):
            return super().allocate_kv(specs, num_blocks, block_size, dtype)
        if block_size > native.LARGEST_BLOCK:
            self._refuse(f"take blocks of {block_size} tokens; the most is {native.LARGEST_BLOCK}")
        return native.NativeKV(self._kernels, specs, num_blocks, block_size, dtype)

    def plan_attention(self, cache: Pool, batch: AttentionBatch) -> StepPlan | native.NativePlan:
        """Index tensors and masks of a step."""
        if isinstance(cache, native.NativeKV):
            return native.NativePlan(cache, batch)
        assert isinstance(cache, PagedKV)
        return plan_step(cache, batch)

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor | None,
        cache: Pool,
        layer: int,
        plan: StepPlan | native.NativePlan,
        *,
        scale: float,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write, then attend."""
        if self._kernels is not None and isinstance(cache, native.NativeKV):
            assert isinstance(plan, native.NativePlan)
            assert v is not None
            assert sinks is None, "allocate_kv gives no such pool to layers with sinks"
            return native.attend(self._kernels, q, k, v, cache, layer, plan, scale=scale, softcap=softcap)
        assert isinstance(cache, PagedKV)
        assert isinstance(plan, StepPlan)
        group = plan.groups[cache.groups[layer]]
        attention.write(k, v, cache, layer, group.slots)
        return attention.attend(q, k, v, cache, layer, group, scale, softcap, sinks)

    def plan_segments(self, lengths: Sequence[int]) -> SegmentPlan:
        """Sequences of equal length go together."""
        return segments.plan_segments(lengths)

    def segment_attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: SegmentPlan, *, scale: float
    ) -> torch.Tensor:
        """One call of torch's kernel a length."""
        return segments.attend(q, k, v, plan, scale)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
        """Draw one token from each row."""
        if self._kernels is not None:
            return native.sample(self._kernels, logits, batch)
        return sampling.sample(logits, batch)

    def logprobs_of(self, logits: torch.Tensor, token_ids: Sequence[int], top: int) -> list[RowLogprobs]:
        """Log-probabilities of given tokens."""
        bad = next((token for token in token_ids if not 0 <= token < logits.shape[1]), None)
        if bad is not None:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST, f"token id {bad} is not in the vocabulary of {logits.shape[1]}"
            )
        if self._kernels is not None:
            return native.logprobs_of(self._kernels, logits, token_ids, top)
        return sampling.logprobs_of(logits.float(), token_ids, top)


def _bounded_gate(spec: GateSpec, gate_up: torch.Tensor) -> torch.Tensor:
    """Gate and up bounded, shifted, or of another slope; rounded once."""
    gate, up = gate_up.float().chunk(2, -1)
    if spec.limit is not None:
        gate, up = gate.clamp(max=spec.limit), up.clamp(-spec.limit, spec.limit)
    if spec.activation == "silu":
        activated = (gate * spec.slope).sigmoid_().mul_(gate)
    else:
        activated = F.gelu(gate, approximate="tanh" if spec.activation == "gelu_tanh" else "none")
    return activated.mul_(up + spec.shift).to(gate_up.dtype)


def offered_dtypes() -> tuple[DType, ...]:
    """Types this processor multiplies in, best first: BF16 leads only where it is native."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return (DType.FLOAT32,)
    if _NATIVE_BF16.intersection(host.cpu_device().instruction_sets):
        return (DType.BFLOAT16, DType.FLOAT32)
    return (DType.FLOAT32, DType.BFLOAT16)


def create(device: str | None = None, *, dtype: str = "auto", threads: int | None = None) -> CpuBackend:
    """Make the default backend.

    Args:
        device: ``cpu`` or nothing.
        dtype: Preferred type; ``auto`` is BF16 where the processor has it, else float32.
        threads: Processors torch may use; by default all that this process may, less one where there are more than
            two.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for another device or type, or where this torch has no oneDNN.
    """
    check_device(device, CpuBackend.name)
    if not torch.backends.mkldnn.is_available():
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            "backend 'cpu' packs weights with oneDNN, which this build of torch lacks; install a torch that has it, or"
            " use the backend 'reference'",
        )
    preferred = parse_dtype(dtype, offered_dtypes(), CpuBackend.name)
    use_threads(threads)
    return CpuBackend(preferred, native.load())
