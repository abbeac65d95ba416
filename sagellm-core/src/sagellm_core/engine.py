"""The entry point ``sagellm`` of the group ``sagellm.engines``: a spec to an engine, cheaply; nothing is loaded.

Knows which transport a spec asks for, and what no engine of ours offers yet.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

if TYPE_CHECKING:
    from .core.loop import EngineCore
    from .front.engine import FrontEngine
    from .transport.base import CoreClient

_BUILD = "sagellm_core.core.build:build_core"


def create(spec: EngineSpec) -> FrontEngine:
    """Make an engine.

    Raises:
        SageLLMError: ``UNSUPPORTED`` or ``INVALID_REQUEST`` for what it cannot honour, by name.
    """
    from .front.engine import FrontEngine
    from .store import resolve, until

    _refuse(spec)
    called_off = threading.Event()
    report = until(called_off)
    return FrontEngine(
        spec, lambda model, revision: resolve(model, revision=revision, progress=report), connect, called_off=called_off
    )


def connect(spec: EngineSpec, path: Path) -> CoreClient:
    """The way to a core of the model at ``path``, wherever ``spec`` wants it to run."""
    if spec.core == "inline":
        from .transport.inline import InlineClient

        return InlineClient(spec, path, _build_here)
    from .transport.process import ProcessClient

    return ProcessClient(spec, path, _BUILD)


def _build_here(spec: EngineSpec, path: Path) -> EngineCore:
    # Imported in the core's thread: it brings the backend's libraries with it.
    from .core.build import build_core

    return build_core(spec, path)


def _refuse(spec: EngineSpec) -> None:
    from .front.form import check_names

    check_names(spec.tool_parser, spec.reasoning_parser)
    for name in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
        degree = getattr(spec, name)
        if degree != 1:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED, f"{name}={degree} is not offered yet; this engine runs on one device", name
            )
    for name in spec.options:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"engine {spec.engine!r} has no option {name!r}; it has none", f"options.{name}"
        )
