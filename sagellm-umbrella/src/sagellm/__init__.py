"""The isagellm inference engine in one import: ``from sagellm import LLM, SamplingParams, UnifiedInferenceClient``.

Composes its components and knows nothing of how any of them works inside.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._exports import EXPORTS

if TYPE_CHECKING:
    from sagellm_control_plane import ControlPlaneManager as ControlPlaneManager
    from sagellm_core import LLM as LLM
    from sagellm_protocol import (
        ChoiceEnd as ChoiceEnd,
        DeltaEvent as DeltaEvent,
        EmbedRequest as EmbedRequest,
        EmbedResponse as EmbedResponse,
        EndEvent as EndEvent,
        EngineCapabilities as EngineCapabilities,
        EngineInfo as EngineInfo,
        EngineSpec as EngineSpec,
        EngineState as EngineState,
        EngineStats as EngineStats,
        ErrorCode as ErrorCode,
        ErrorEvent as ErrorEvent,
        FinishReason as FinishReason,
        Message as Message,
        Metrics as Metrics,
        Output as Output,
        Request as Request,
        Response as Response,
        SageLLMError as SageLLMError,
        SamplingParams as SamplingParams,
        ScoreRequest as ScoreRequest,
        ScoreResponse as ScoreResponse,
        StartEvent as StartEvent,
        StreamEvent as StreamEvent,
        Usage as Usage,
    )

    from .client import AsyncInferenceClient as AsyncInferenceClient, UnifiedInferenceClient as UnifiedInferenceClient

__all__ = [*EXPORTS, "__version__"]  # noqa: PLE0604  the table is the one list of names


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # not above: it takes as long to import as all of this package

        return version("isagellm")
    if name not in EXPORTS:
        raise AttributeError(f"module 'sagellm' has no attribute {name!r}")
    try:
        module = import_module(EXPORTS[name])
    except ModuleNotFoundError as error:
        if error.name != EXPORTS[name]:
            raise
        raise ModuleNotFoundError(
            f"sagellm.{name} is defined by {error.name}, which is not installed: pip install isagellm", name=error.name
        ) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
