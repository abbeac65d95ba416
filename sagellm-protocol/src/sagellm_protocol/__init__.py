"""The shared contract of isagellm: requests, events, errors, metrics, KV descriptors, and what packages meet through.

Depends on pydantic alone. Knows nothing of torch, HTTP servers, or any other package of ours. Names load when they are
first used, so that a program pays for pydantic only once it needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._wire import (
        PROTOCOL_VERSION,
    )
    from .backend import (
        AttentionBatch,
        AttentionPlan,
        Backend,
        FusableUnit,
        GateSpec,
        Graph,
        Group,
        KVCache,
        KVSpec,
        MemoryInfo,
        RawWeight,
        RopeSpec,
        RoutingSpec,
        RowLogprobs,
        Sampled,
        SamplingBatch,
        Weight,
        WeightFormat,
        WeightUse,
    )
    from .blocks import (
        BlockHash,
        BlocksCleared,
        BlocksRemoved,
        BlocksStored,
        KVEvent,
        KVEventBatch,
        KVLayout,
        KVTransferTicket,
        block_hash,
        block_hashes,
        root_hash,
    )
    from .devices import (
        BackendCapabilities,
        DeviceInfo,
        DType,
    )
    from .engine import (
        EngineCapabilities,
        EngineInfo,
        EngineSpec,
        EngineState,
        EngineStats,
    )
    from .errors import (
        ErrorCode,
        ErrorInfo,
        SageLLMError,
    )
    from .events import (
        ChoiceEnd,
        DeltaEvent,
        EndEvent,
        ErrorEvent,
        FinishReason,
        PositionLogprobs,
        StartEvent,
        StreamEvent,
        TokenLogprob,
        ToolCallDelta,
        Usage,
        is_terminal,
        parse_event,
    )
    from .interfaces import (
        ControlPlane,
        Engine,
        EngineHandle,
        EngineRecord,
        KVEventSource,
        Launcher,
        ModelInfo,
        PlaneStatus,
        RenderedPrompt,
        Renderer,
        RequestEnding,
    )
    from .metrics import (
        Metrics,
        Timestamps,
    )
    from .requests import (
        SLO,
        ContentPart,
        EmbedRequest,
        KVTransfer,
        Message,
        NamedTool,
        Request,
        ScoreRequest,
        StructuredOutput,
        TextPart,
        ToolCall,
        ToolDefinition,
    )
    from .responses import (
        EmbedResponse,
        Output,
        Response,
        ResponseBuilder,
        ScoreResponse,
        Vector,
        collect,
    )
    from .sampling import (
        SamplingParams,
    )

_NAMES = {
    "_wire": ("PROTOCOL_VERSION",),
    "backend": (
        "AttentionBatch",
        "AttentionPlan",
        "Backend",
        "FusableUnit",
        "GateSpec",
        "Graph",
        "Group",
        "KVCache",
        "KVSpec",
        "MemoryInfo",
        "RawWeight",
        "RopeSpec",
        "RoutingSpec",
        "RowLogprobs",
        "Sampled",
        "SamplingBatch",
        "Weight",
        "WeightFormat",
        "WeightUse",
    ),
    "blocks": (
        "BlockHash",
        "BlocksCleared",
        "BlocksRemoved",
        "BlocksStored",
        "KVEvent",
        "KVEventBatch",
        "KVLayout",
        "KVTransferTicket",
        "block_hash",
        "block_hashes",
        "root_hash",
    ),
    "devices": (
        "BackendCapabilities",
        "DType",
        "DeviceInfo",
    ),
    "engine": (
        "EngineCapabilities",
        "EngineInfo",
        "EngineSpec",
        "EngineState",
        "EngineStats",
    ),
    "errors": (
        "ErrorCode",
        "ErrorInfo",
        "SageLLMError",
    ),
    "events": (
        "ChoiceEnd",
        "DeltaEvent",
        "EndEvent",
        "ErrorEvent",
        "FinishReason",
        "PositionLogprobs",
        "StartEvent",
        "StreamEvent",
        "TokenLogprob",
        "ToolCallDelta",
        "Usage",
        "is_terminal",
        "parse_event",
    ),
    "interfaces": (
        "ControlPlane",
        "Engine",
        "EngineHandle",
        "EngineRecord",
        "KVEventSource",
        "Launcher",
        "ModelInfo",
        "PlaneStatus",
        "RenderedPrompt",
        "Renderer",
        "RequestEnding",
    ),
    "metrics": (
        "Metrics",
        "Timestamps",
    ),
    "requests": (
        "ContentPart",
        "EmbedRequest",
        "KVTransfer",
        "Message",
        "NamedTool",
        "Request",
        "SLO",
        "ScoreRequest",
        "StructuredOutput",
        "TextPart",
        "ToolCall",
        "ToolDefinition",
    ),
    "responses": (
        "EmbedResponse",
        "Output",
        "Response",
        "ResponseBuilder",
        "ScoreResponse",
        "Vector",
        "collect",
    ),
    "sampling": ("SamplingParams",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "PROTOCOL_VERSION",
    "SLO",
    "AttentionBatch",
    "AttentionPlan",
    "Backend",
    "BackendCapabilities",
    "BlockHash",
    "BlocksCleared",
    "BlocksRemoved",
    "BlocksStored",
    "ChoiceEnd",
    "ContentPart",
    "ControlPlane",
    "DType",
    "DeltaEvent",
    "DeviceInfo",
    "EmbedRequest",
    "EmbedResponse",
    "EndEvent",
    "Engine",
    "EngineCapabilities",
    "EngineHandle",
    "EngineInfo",
    "EngineRecord",
    "EngineSpec",
    "EngineState",
    "EngineStats",
    "ErrorCode",
    "ErrorEvent",
    "ErrorInfo",
    "FinishReason",
    "FusableUnit",
    "GateSpec",
    "Graph",
    "Group",
    "KVCache",
    "KVEvent",
    "KVEventBatch",
    "KVEventSource",
    "KVLayout",
    "KVSpec",
    "KVTransfer",
    "KVTransferTicket",
    "Launcher",
    "MemoryInfo",
    "Message",
    "Metrics",
    "ModelInfo",
    "NamedTool",
    "Output",
    "PlaneStatus",
    "PositionLogprobs",
    "RawWeight",
    "RenderedPrompt",
    "Renderer",
    "Request",
    "RequestEnding",
    "Response",
    "ResponseBuilder",
    "RopeSpec",
    "RoutingSpec",
    "RowLogprobs",
    "SageLLMError",
    "Sampled",
    "SamplingBatch",
    "SamplingParams",
    "ScoreRequest",
    "ScoreResponse",
    "StartEvent",
    "StreamEvent",
    "StructuredOutput",
    "TextPart",
    "Timestamps",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "ToolDefinition",
    "Usage",
    "Vector",
    "Weight",
    "WeightFormat",
    "WeightUse",
    "__version__",
    "block_hash",
    "block_hashes",
    "collect",
    "is_terminal",
    "parse_event",
    "root_hash",
]


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
