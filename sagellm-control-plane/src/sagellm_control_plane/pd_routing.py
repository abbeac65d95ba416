"""Which part of the work a request is, and which instances are made for it, as SAGE asked for it.

The rule is :class:`sagellm_control_plane.routing.phases.PhaseRule`. A deadline counts from a request's arrival.
"""

from __future__ import annotations

from .legacy.asking import Asked
from .routing.phases import PhaseRule
from .types import ExecutionInstance, ExecutionInstanceType, PDSeparationConfig, RequestMetadata

_MADE_FOR = {
    ExecutionInstanceType.PREFILLING: (1.0, 0.0),
    ExecutionInstanceType.DECODING: (0.0, 1.0),
    ExecutionInstanceType.GENERAL: (0.7, 0.7),
    ExecutionInstanceType.LLM_EMBEDDING: (0.7, 0.7),
    ExecutionInstanceType.EMBEDDING: (0.0, 0.0),
}
_MORE, _LESS = 0.8, 0.6
"""Of a hybrid instance, for what it runs more and less of."""


class PDRoutingStrategy:
    """Prefill and decode apart.

    Args:
        pd_config: Thresholds, and whether to separate at all.
    """

    def __init__(self, pd_config: PDSeparationConfig) -> None:
        self.pd_config = pd_config
        self._rule = PhaseRule(pd_config.prefilling_threshold_input_tokens, pd_config.prefilling_threshold_ratio)

    def determine_request_phase(
        self, request: RequestMetadata, avg_output_tokens: float = 100.0
    ) -> ExecutionInstanceType | None:
        """The kind of instance a request should begin on.

        Args:
            request: The request; its prompt's tokens are reckoned from its length.
            avg_output_tokens: Reckoned for a request that states no ``max_tokens``.

        Returns:
            PREFILLING when it pays to compute its prompt apart, else DECODING; HYBRID when prefill and decode are not
            separated, or the prompt is not known; ``None`` for a request for vectors, which has no phases.
        """
        if request.is_embedding_request:
            return None
        if not self.pd_config.enabled or not request.prompt:
            return ExecutionInstanceType.HYBRID
        if request.prefill_completed:
            return ExecutionInstanceType.DECODING
        asked = Asked(request, 0)
        output = request.max_tokens if request.max_tokens is not None else round(avg_output_tokens)
        apart = self._rule.separates(asked, output, asked.arrived)
        return ExecutionInstanceType.PREFILLING if apart else ExecutionInstanceType.DECODING

    def filter_instances_by_type(
        self, instances: list[ExecutionInstance], target_type: ExecutionInstanceType
    ) -> list[ExecutionInstance]:
        """Instances for a phase that take requests: those made for it, or else those that do both.

        For HYBRID all that make text.
        """
        if target_type is ExecutionInstanceType.PREFILLING:
            able = [instance for instance in instances if instance.can_accept_prefilling_request()]
        elif target_type is ExecutionInstanceType.DECODING:
            able = [instance for instance in instances if instance.can_accept_decoding_request()]
        elif target_type is ExecutionInstanceType.HYBRID:
            return [instance for instance in instances if instance.can_accept_llm_request()]
        else:
            able = [instance for instance in instances if instance.can_accept_request]
        special = [instance for instance in able if instance.instance_type is target_type]
        return special or able

    @staticmethod
    def get_instance_specialization(instance: ExecutionInstance) -> dict[str, float]:
        """How well an instance suits ``prefilling`` and ``decoding``, 0 to 1."""
        if instance.instance_type is ExecutionInstanceType.HYBRID:
            more = instance.prefilling_active_requests > instance.decoding_active_requests
            prefilling, decoding = (_MORE, _LESS) if more else (_LESS, _MORE)
        else:
            prefilling, decoding = _MADE_FOR[instance.instance_type]
        return {"prefilling": prefilling, "decoding": decoding}

    def recommend_parallelism_config(
        self,
        instance: ExecutionInstance,
        request: RequestMetadata,
        target_type: ExecutionInstanceType | None = None,
    ) -> dict[str, int]:
        """``tensor_parallel_size`` and ``pipeline_parallel_size`` for a phase on an instance.

        Prompts gain from many devices, as they are bound by arithmetic; answers rather from few, as each step waits for
        all of them. What the instance was configured with for the phase goes first; no size passes its devices.

        Args:
            instance: Where.
            request: For what.
            target_type: The phase; the request's own if left out.
        """
        phase = target_type if target_type is not None else self.determine_request_phase(request)
        devices = max(1, instance.gpu_count)
        tensor, pipeline = instance.tensor_parallel_size, instance.pipeline_parallel_size
        if phase is ExecutionInstanceType.PREFILLING:
            config = instance.prefilling_config
            tensor = config.tensor_parallel_size if config is not None else devices
            pipeline = config.pipeline_parallel_size if config is not None else 1
        elif phase is ExecutionInstanceType.DECODING and instance.decoding_config is not None:
            tensor = instance.decoding_config.tensor_parallel_size
            pipeline = instance.decoding_config.pipeline_parallel_size
        tensor = 1 << (min(tensor, devices).bit_length() - 1)
        return {"tensor_parallel_size": tensor, "pipeline_parallel_size": max(1, min(pipeline, devices // tensor))}
