"""The entry point ``sagellm`` of the group ``sagellm.engines``: a spec to an engine, cheaply; nothing is loaded.

Knows which transport a spec asks for, and what no engine of ours offers yet.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    from .ahead import take
    from .transport.process import ProcessClient

    return ProcessClient(spec, path, _BUILD, take())


def _build_here(spec: EngineSpec, path: Path) -> EngineCore:
    with _uncollected():
        # Imported in the core's thread: it brings the backend's libraries with it.
        from .core.build import build_core

        return build_core(spec, path)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Leave garbage alone: what is made while loading stays, and looking for some in it took a tenth of the start."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            if not gc.get_freeze_count():
                # There and back makes what is there old, unlooked at; else the next collection would look at it all.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _refuse(spec: EngineSpec) -> None:
    from .front.form import check_names
    from .options import check_options

    check_names(spec.tool_parser, spec.reasoning_parser)
    for name in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
        degree = getattr(spec, name)
        if degree != 1:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED, f"{name}={degree} is not offered yet; this engine runs on one device", name
            )
    check_options(spec)
