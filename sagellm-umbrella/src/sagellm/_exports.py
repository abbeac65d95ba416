"""What ``sagellm`` offers, as data: public name to the module that defines it.

Everything is imported on first use, so that ``import sagellm`` costs next to nothing and needs no torch.
"""

from __future__ import annotations

_PROTOCOL = (
    "ChoiceEnd",
    "DeltaEvent",
    "EmbedRequest",
    "EmbedResponse",
    "EndEvent",
    "EngineCapabilities",
    "EngineInfo",
    "EngineSpec",
    "EngineState",
    "EngineStats",
    "ErrorCode",
    "ErrorEvent",
    "FinishReason",
    "Message",
    "Metrics",
    "Output",
    "Request",
    "Response",
    "SageLLMError",
    "SamplingParams",
    "ScoreRequest",
    "ScoreResponse",
    "StartEvent",
    "StreamEvent",
    "Usage",
)

EXPORTS: dict[str, str] = {
    "LLM": "sagellm_core",
    "ControlPlaneManager": "sagellm_control_plane",
    "UnifiedInferenceClient": "sagellm.client",
    "AsyncInferenceClient": "sagellm.client",
    **dict.fromkeys(_PROTOCOL, "sagellm_protocol"),
}
