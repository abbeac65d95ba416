"""Every operation of the contract, written to be read.

Each computes in float32 and rounds once, at its end. Nothing is packed, fused or cached, and no speed is promised.
Knows nothing of models, requests or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from sagellm_backend import collectives, formats, host
from sagellm_backend.dtypes import TORCH, parse_dtype
from sagellm_backend.paged import PagedKV
from sagellm_backend.torch_backend import TorchBackend, check_device, use_threads
from sagellm_protocol.backend import (
    AdaptedRows,
    AttentionBatch,
    GateSpec,
    RawWeight,
    RopeSpec,
    RoutingSpec,
    RowLogprobs,
    Sampled,
    SamplingBatch,
    WeightUse,
)
from sagellm_protocol.devices import BackendCapabilities, DType

from . import attention, sampling
from .experts import mix, route


class MatrixWeight:
    """A weight as one plain matrix ``[O, E]`` with its bias ``[O]``."""

    batch_invariant = False  # torch's products are of another kernel for another number of rows

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.matrix = matrix
        self.bias = bias
        self.shape = tuple(matrix.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix and its bias."""
        return self.matrix.nbytes + (self.bias.nbytes if self.bias is not None else 0)


class ReferenceBackend(TorchBackend):
    """The truth. Made by :func:`create`."""

    name = "reference"

    def __init__(self, dtype: DType = DType.FLOAT32) -> None:
        super().__init__()
        self.dtypes = (dtype, *(other for other in _DTYPES if other is not dtype))

    def capabilities(self) -> BackendCapabilities:
        """Everything, slowly."""
        return BackendCapabilities(
            backend=self.name,
            available=True,
            devices=(host.cpu_device(),),
            dtypes=self.dtypes,
            kv_dtypes=self.dtypes,
            weight_formats=tuple(kind.value for kind in formats.DECODERS),
            quantizations=self.quantizations,
            collectives=collectives.available_transports(),
            rank=0,
        )

    def pack_weight(
        self,
        parts: Sequence[RawWeight],
        dtype: DType,
        *,
        use: WeightUse = WeightUse.LINEAR,
        bias: Sequence[RawWeight] = (),
        quantization: str | None = None,
    ) -> MatrixWeight:
        """Stack the parts into one matrix, whatever it is for; one that is to be quantised is expanded again."""
        self.check_dtype(dtype)
        stored = self.stored(parts, quantization)
        matrix = torch.cat([formats.expand(part, kind, TORCH[dtype]) for part, kind in stored])
        vector = torch.cat([self.tensor(part, dtype) for part in bias]) if bias else None
        return MatrixWeight(matrix, vector)

    def linear(
        self, x: torch.Tensor, weight: MatrixWeight, adapters: Sequence[AdaptedRows[torch.Tensor]] | None = None
    ) -> torch.Tensor:
        """``x @ weight.T + bias``, and what adapters add."""
        h = x.float()
        y = h @ weight.matrix.float().T
        if weight.bias is not None:
            y = y + weight.bias.float()
        for rows in adapters or ():
            low_rank, first = rows.low_rank, 0
            low = h[rows.begin : rows.end] @ low_rank.down.float().T
            for up, begin in zip(low_rank.up, low_rank.begins, strict=True):
                outputs, rank = up.shape
                y[rows.begin : rows.end, begin : begin + outputs] += low[:, first : first + rank] @ up.float().T
                first += rank
        return y.to(x.dtype)

    def embedding(self, ids: torch.Tensor, weight: MatrixWeight, dtype: DType) -> torch.Tensor:
        """Rows of the table."""
        return weight.matrix[ids].to(TORCH[dtype])

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """``x / sqrt(mean(x²) + eps) * weight``."""
        h = x.float()
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum's norm, and the sum."""
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
        """``(x - mean) / sqrt(variance + eps) * weight + bias``."""
        h = x.float()
        centred = h - h.mean(-1, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.float()
        return (y if bias is None else y + bias.float()).to(x.dtype)

    def rope(
        self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, spec: RopeSpec
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate each pair of dimensions by its frequency times the position (RoFormer, Su et al. 2021)."""
        angles = positions.float()[:, None] * torch.tensor(spec.inv_freq)  # [T, rotary_dim / 2]
        cos = (angles.cos() * spec.attention_factor)[:, None, :]
        sin = (angles.sin() * spec.attention_factor)[:, None, :]
        return _rotate(q, cos, sin, spec), _rotate(k, cos, sin, spec)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """``silu(gate) * up``."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)

    def gelu_mul(self, gate_up: torch.Tensor, *, approximate: bool) -> torch.Tensor:
        """``gelu(gate) * up``."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (F.gelu(gate, approximate="tanh" if approximate else "none") * up).to(gate_up.dtype)

    def gelu(self, x: torch.Tensor, *, approximate: bool) -> torch.Tensor:
        """``gelu(x)``."""
        return F.gelu(x.float(), approximate="tanh" if approximate else "none").to(x.dtype)

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        """``cap * tanh(x / cap)``."""
        return (cap * torch.tanh(x.float() / cap)).to(x.dtype)

    def route(
        self, x: torch.Tensor, router: MatrixWeight, spec: RoutingSpec, correction: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose, one token at a time."""
        return route(self.linear(x.float(), router), spec, correction)

    def moe(
        self,
        x: torch.Tensor,
        experts: torch.Tensor,
        shares: torch.Tensor,
        gate_up: Sequence[MatrixWeight],
        down: Sequence[MatrixWeight],
        gate: GateSpec,
    ) -> torch.Tensor:
        """Mix, one token at a time."""
        return mix(x, experts, shares, gate_up, down, self.linear, gate)

    def plan_attention(self, cache: PagedKV, batch: AttentionBatch) -> AttentionBatch:
        """The host's integers are plan enough."""
        return batch

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor | None,
        cache: PagedKV,
        layer: int,
        plan: AttentionBatch,
        *,
        scale: float,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write, then attend, one query at a time."""
        return attention.attend(q, k, v, cache, layer, plan, scale, softcap, sinks)

    def plan_segments(self, lengths: Sequence[int]) -> list[int]:
        """The lengths are plan enough."""
        return list(lengths)

    def segment_attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: list[int], *, scale: float
    ) -> torch.Tensor:
        """Sequence by sequence."""
        return attention.attend_within(q, k, v, plan, scale)

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
        """Row by row, in double precision."""
        return sampling.sample(logits, batch)

    def logprobs_of(self, logits: torch.Tensor, token_ids: Sequence[int], top: int) -> list[RowLogprobs]:
        """Row by row."""
        return [sampling.row_logprobs(row, token, top) for row, token in zip(logits.float(), token_ids, strict=True)]


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, spec: RopeSpec) -> torch.Tensor:
    h = x.float()
    turned, kept = h[..., : spec.rotary_dim], h[..., spec.rotary_dim :]
    if spec.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((turned, kept), dim=-1).to(x.dtype)


_DTYPES = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)


def create(device: str | None = None, *, dtype: str = "auto", threads: int | None = None) -> ReferenceBackend:
    """Make the reference backend.

    Args:
        device: ``cpu`` or nothing.
        dtype: Preferred type; ``auto`` is float32.
        threads: Processors torch may use; by default all that this process may, less one where there are more than
            two.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for another device or type.
    """
    check_device(device, ReferenceBackend.name)
    preferred = parse_dtype(dtype, _DTYPES, ReferenceBackend.name)
    use_threads(threads)
    return ReferenceBackend(preferred)
