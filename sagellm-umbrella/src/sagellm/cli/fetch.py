"""Having a model on this machine before an engine looks for it, so that a long fetch is seen and can be left.

Knows nothing of how a fetch is shown.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sagellm.components import component
from sagellm_protocol import EngineSpec

if TYPE_CHECKING:
    from sagellm_core.store import Progress

Report = Callable[["Progress"], None]

OUR_ENGINE = "sagellm"


def need_engine(spec: EngineSpec) -> None:
    """Say what to install where the engine that ``spec`` asks for is ours and absent.

    Raises:
        SageLLMError: ``NOT_INSTALLED``.
    """
    if spec.engine == OUR_ENGINE:
        component("sagellm_core")


def fetch(spec: EngineSpec, report: Report) -> None:
    """Fetch what ``spec`` names, unless it is here or its engine is not ours: others find their models themselves.

    Raises:
        SageLLMError: There is no such model, or it is not to be had.
    """
    if spec.engine == OUR_ENGINE:
        component("sagellm_core.store").resolve(spec.model, revision=spec.revision, progress=report)


async def fetched(spec: EngineSpec, report: Report) -> None:
    """As :func:`fetch`, in a thread; cancelled, the fetch ends as soon as it has something to report."""
    if spec.engine != OUR_ENGINE:
        return
    called_off = threading.Event()
    try:
        await asyncio.to_thread(fetch, spec, component("sagellm_core.store").until(called_off, report))
    except asyncio.CancelledError:
        called_off.set()
        raise
