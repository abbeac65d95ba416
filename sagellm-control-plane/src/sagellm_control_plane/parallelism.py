"""How a model could be spread over devices, computed from its size, the devices' memory and what joins them.

A roofline (Williams et al., 2009): prompts are bound by arithmetic, answers by reading the weights, both beside what is
sent between devices. Devices are taken to be like :class:`Hardware`, whose defaults are an H100's; set
``strategy.hardware`` for others. Facts of a model that are not in an instance's ``metadata`` (``model_size_gb``,
``num_layers``, ``num_attention_heads``, ``num_experts``, ``batch_size``) follow from its files, its name and its size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from .gpu_manager import GIB, weight_bytes
from .legacy.asking import tokens_of
from .legacy.errors import BadValue
from .types import ExecutionInstance, ParallelismType, RequestMetadata, RequestPriority

MEMORY_SHARE = 0.9
"""Of a device's memory that may be used."""
ACTIVATION_SHARE = 0.1
"""Of what weights take, beside them."""
TYPICAL_OUTPUT = 128
MOST_TENSOR = 8
"""Devices of one NVLink island, within which tensors are split."""
URGENT = (RequestPriority.CRITICAL, RequestPriority.HIGH)


@dataclass(frozen=True)
class Hardware:
    """One device, and what joins it to others."""

    flops: float = 990e12 * 0.4
    """Operations a second that prompts reach."""
    memory_bytes_s: float = 3.35e12
    link_bytes_s: float = 450e9
    """To devices of the same island."""
    network_bytes_s: float = 50e9
    """To those beyond."""
    link_latency_s: float = 10e-6
    """Of one exchange."""


@dataclass
class ParallelismConfig:
    """Sizes of each kind; their product is the devices that are used."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    expert_parallel_size: int = 1
    sequence_parallel: bool = False
    context_parallel_size: int = 1
    total_gpus: int = 1
    gpu_memory_gb: float = 0.0
    """Of each device; 0 if unknown."""
    model_size_gb: float = 0.0
    """Of the weights; 0 if unknown."""
    max_seq_length: int = 2048
    batch_size: int = 1

    def validate(self) -> bool:
        """Whether every size is 1 or more, the devices suffice, and the model fits them as far as sizes are known."""
        sizes = (
            self.tensor_parallel_size,
            self.pipeline_parallel_size,
            self.data_parallel_size,
            self.expert_parallel_size,
            self.context_parallel_size,
        )
        if min(sizes) < 1 or self.total_parallel_size > self.total_gpus:
            return False
        if not self.gpu_memory_gb or not self.model_size_gb:
            return True
        return self.memory_per_gpu_gb <= self.gpu_memory_gb * MEMORY_SHARE

    @property
    def total_parallel_size(self) -> int:
        """Devices that are used."""
        return (
            self.tensor_parallel_size
            * self.pipeline_parallel_size
            * self.data_parallel_size
            * self.expert_parallel_size
            * self.context_parallel_size
        )

    @property
    def shards(self) -> int:
        """Devices that one copy of the weights is divided among."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.expert_parallel_size

    @property
    def memory_per_gpu_gb(self) -> float:
        """Weights, activations, and the keys and values of a batch of full length, on each device."""
        cache = self.batch_size * self.max_seq_length * kv_bytes(self.model_size_gb) / GIB
        return (self.model_size_gb * (1 + ACTIVATION_SHARE) + cache) / self.shards


def layers_of(model_size_gb: float) -> int:
    """Layers of a usual model of 16-bit weights of that size, whose width is 128 a layer (12 L d^2 parameters)."""
    parameters = max(model_size_gb, 0.01) * GIB / 2
    return max(1, round(math.pow(parameters / (12 * 128**2), 1 / 3)))


def kv_bytes(model_size_gb: float) -> float:
    """Bytes of keys and values a token, in 16 bits, where a quarter of the heads have their own."""
    if not model_size_gb:
        return 0.0
    layers = layers_of(model_size_gb)
    return 2 * 2 * layers * (128 * layers) / 4


class ParallelismStrategy(ABC):
    """One way to spread a model.

    Args:
        name: What it is called.
        strategy_type: Its kind.
    """

    def __init__(self, name: str, strategy_type: ParallelismType) -> None:
        self.name = name
        self.strategy_type = strategy_type
        self.hardware = Hardware()

    @abstractmethod
    def optimize(self, request: RequestMetadata, instance: ExecutionInstance, available_gpus: int) -> ParallelismConfig:
        """The best sizes of this kind; whether they fit, :meth:`ParallelismConfig.validate` tells.

        Raises:
            ValueError: For no device.
        """

    @abstractmethod
    def estimate_performance(self, config: ParallelismConfig, request: RequestMetadata) -> dict[str, float]:
        """What sizes achieve.

        Returns:
            ``latency_ms`` of the request and its parts ``ttft_ms`` and ``tpot_ms``, ``throughput_tokens_per_sec`` of
            all devices at the config's batch, ``memory_per_gpu_gb``, ``communication_ms`` of a step, ``gpus``, and
            ``fits``, which is 1 or 0.
        """


class _Computed(ParallelismStrategy):
    """Sizes by what a kind allows; one estimate for all kinds, as all are points of one space."""

    def optimize(self, request: RequestMetadata, instance: ExecutionInstance, available_gpus: int) -> ParallelismConfig:
        """The best sizes of this kind."""
        if available_gpus < 1:
            raise BadValue(f"available_gpus must be 1 or more (got {available_gpus!r})", "available_gpus")
        facts = instance.metadata
        size = (
            facts.get("model_size_gb") or (weight_bytes(request.effective_model_name or instance.model_name) or 0) / GIB
        )
        base = ParallelismConfig(
            total_gpus=available_gpus,
            gpu_memory_gb=instance.gpu_memory_gb,
            model_size_gb=float(size),
            max_seq_length=max(ParallelismConfig.max_seq_length, tokens_of(request) + (request.max_tokens or 0)),
            batch_size=int(facts.get("batch_size", 1)),
        )
        return self._sized(base, facts)

    def _sized(self, base: ParallelismConfig, facts: dict[str, Any]) -> ParallelismConfig:
        raise NotImplementedError

    def estimate_performance(self, config: ParallelismConfig, request: RequestMetadata) -> dict[str, float]:
        """What sizes achieve; see :meth:`ParallelismStrategy.estimate_performance`."""
        hardware, weights = self.hardware, max(config.model_size_gb, 0.01) * GIB
        prompt, output = tokens_of(request), request.max_tokens or TYPICAL_OUTPUT
        layers, tensor = layers_of(config.model_size_gb), config.tensor_parallel_size
        width_bytes = 128 * layers * 2
        joint = tensor * config.expert_parallel_size
        stages = config.pipeline_parallel_size
        sent_s = self._sent_s(config, layers)
        # Two operations a parameter of two bytes; one request passes the stages one after the other.
        arithmetic_s = weights * prompt / hardware.flops / (joint * config.context_parallel_size)
        ttft_s = arithmetic_s + sent_s(prompt * width_bytes)
        cache = config.batch_size * prompt * kv_bytes(config.model_size_gb)
        step_s = (weights + cache) / hardware.memory_bytes_s / joint + sent_s(config.batch_size * width_bytes)
        # While one batch is in a stage, others are in the rest: a full pipeline answers a batch a stage.
        each_s = (ttft_s + output * step_s) / stages
        return {
            "latency_ms": (ttft_s + output * step_s) * 1000,
            "ttft_ms": ttft_s * 1000,
            "tpot_ms": step_s * 1000,
            "throughput_tokens_per_sec": config.batch_size * output / each_s * config.data_parallel_size,
            "memory_per_gpu_gb": config.memory_per_gpu_gb,
            "communication_ms": sent_s(config.batch_size * width_bytes) * 1000,
            "gpus": float(config.total_parallel_size),
            "fits": float(config.validate()),
        }

    def _sent_s(self, config: ParallelismConfig, layers: int) -> Any:
        """The time to exchange activations of so many bytes in one pass through the model."""
        hardware = self.hardware

        def seconds(sent: float) -> float:
            total = 0.0
            for size in (config.tensor_parallel_size, config.expert_parallel_size):
                if size > 1:
                    # Two exchanges a layer, each moving nearly twice the activations (a ring).
                    speed = hardware.link_bytes_s if size <= MOST_TENSOR else hardware.network_bytes_s
                    total += 2 * layers * (hardware.link_latency_s + 2 * sent * (size - 1) / size / speed)
            hops = config.pipeline_parallel_size - 1
            return total + hops * (hardware.link_latency_s + sent / hardware.network_bytes_s)

        return seconds


class TensorParallelStrategy(_Computed):
    """Every layer over several devices: the largest power of two that the heads divide by."""

    def __init__(self) -> None:
        super().__init__("tensor_parallel", ParallelismType.TENSOR_PARALLEL)

    def _sized(self, base: ParallelismConfig, facts: dict[str, Any]) -> ParallelismConfig:
        size = _power_of_two(base.total_gpus, facts.get("num_attention_heads"))
        return replace(base, tensor_parallel_size=size, sequence_parallel=size > 1)


class PipelineParallelStrategy(_Computed):
    """Layers in stages: as many as there are devices, and layers."""

    def __init__(self) -> None:
        super().__init__("pipeline_parallel", ParallelismType.PIPELINE_PARALLEL)

    def _sized(self, base: ParallelismConfig, facts: dict[str, Any]) -> ParallelismConfig:
        layers = int(facts.get("num_layers", layers_of(base.model_size_gb)))
        return replace(base, pipeline_parallel_size=min(base.total_gpus, layers))


class DataParallelStrategy(_Computed):
    """A whole copy on every device."""

    def __init__(self) -> None:
        super().__init__("data_parallel", ParallelismType.DATA_PARALLEL)

    def _sized(self, base: ParallelismConfig, facts: dict[str, Any]) -> ParallelismConfig:
        return replace(base, data_parallel_size=base.total_gpus)


class ExpertParallelStrategy(_Computed):
    """Experts over several devices: as many as divide them; one device for a model without experts."""

    def __init__(self) -> None:
        super().__init__("expert_parallel", ParallelismType.EXPERT_PARALLEL)

    def _sized(self, base: ParallelismConfig, facts: dict[str, Any]) -> ParallelismConfig:
        experts = int(facts.get("num_experts", 1))
        size = max(size for size in range(1, base.total_gpus + 1) if experts % size == 0)
        return replace(base, expert_parallel_size=size)


class HybridParallelStrategy(_Computed):
    """Tensors over the fewest devices of an island that hold the model, stages beyond that, copies over the rest."""

    def __init__(self) -> None:
        super().__init__("hybrid_parallel", ParallelismType.HYBRID)

    def _sized(self, base: ParallelismConfig, facts: dict[str, Any]) -> ParallelismConfig:
        most = _power_of_two(min(base.total_gpus, MOST_TENSOR), facts.get("num_attention_heads"))
        layers = int(facts.get("num_layers", layers_of(base.model_size_gb)))
        found = replace(base, tensor_parallel_size=most)
        for stages in range(1, min(layers, base.total_gpus) + 1):
            for tensor in (1 << power for power in range(most.bit_length())):
                found = replace(base, tensor_parallel_size=tensor, pipeline_parallel_size=stages)
                if found.validate():
                    copies = base.total_gpus // found.total_parallel_size
                    return replace(found, data_parallel_size=copies, sequence_parallel=tensor > 1)
        return replace(base, tensor_parallel_size=most, pipeline_parallel_size=max(1, base.total_gpus // most))


class ParallelismOptimizer:
    """Compares the kinds."""

    def __init__(self) -> None:
        self.strategies: dict[ParallelismType, ParallelismStrategy] = {
            strategy.strategy_type: strategy
            for strategy in (
                TensorParallelStrategy(),
                PipelineParallelStrategy(),
                DataParallelStrategy(),
                ExpertParallelStrategy(),
                HybridParallelStrategy(),
            )
        }

    def select_strategy(
        self, request: RequestMetadata, instance: ExecutionInstance, available_gpus: int
    ) -> tuple[ParallelismStrategy, ParallelismConfig]:
        """The kind that the request asks for, else the best of those that fit.

        The best is the quickest for a request that is urgent or has a deadline, else that with the most tokens a
        second.

        Raises:
            ValueError: For no device, or when none fits, with what each would take.
        """
        hint = request.parallelism_hint
        if hint is not None:
            return self.strategies[hint], self.strategies[hint].optimize(request, instance, available_gpus)
        hurried = request.priority in URGENT or request.slo_deadline_ms is not None
        name, sign = ("latency_ms", 1) if hurried else ("throughput_tokens_per_sec", -1)
        compared = self.compare_strategies(request, instance, available_gpus)
        able = {kind: figures for kind, figures in compared.items() if figures["fits"]}
        if not able:
            needs = ", ".join(f"{kind.value} {each['memory_per_gpu_gb']:.1f} GiB" for kind, each in compared.items())
            raise BadValue(
                f"{available_gpus} devices of {instance.gpu_memory_gb:g} GiB hold the model in no way; each would take"
                f" {needs}",
                "available_gpus",
            )
        best = min(able, key=lambda kind: (sign * able[kind][name], able[kind]["gpus"]))
        return self.strategies[best], self.strategies[best].optimize(request, instance, available_gpus)

    def compare_strategies(
        self, request: RequestMetadata, instance: ExecutionInstance, available_gpus: int
    ) -> dict[ParallelismType, dict[str, float]]:
        """What the best sizes of each kind achieve."""
        return {
            kind: strategy.estimate_performance(strategy.optimize(request, instance, available_gpus), request)
            for kind, strategy in self.strategies.items()
        }


def _power_of_two(most: int, heads: int | None) -> int:
    size = 1 << (most.bit_length() - 1)
    while heads is not None and heads % size:
        size //= 2
    return size
