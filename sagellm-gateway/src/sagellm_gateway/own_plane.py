"""The control plane that a gateway makes for itself when none is passed in, and the engine servers it attaches.

Knows nothing of what an engine serves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sagellm_protocol import ControlPlane, SageLLMError
from sagellm_protocol.plugins import CONTROL_PLANES, load

from .settings import GatewaySettings

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0

_log = logging.getLogger("sagellm_gateway")


def make_plane(settings: GatewaySettings) -> ControlPlane:
    """Make the control plane that the settings name; making it starts nothing.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` when there is none of that name.
    """
    plane: ControlPlane = load(CONTROL_PLANES, settings.control_plane)()
    return plane


@asynccontextmanager
async def started(plane: ControlPlane, settings: GatewaySettings) -> AsyncIterator[None]:
    """Run a control plane for as long as the block runs, attaching engine servers meanwhile."""
    await plane.start()
    attaching = asyncio.ensure_future(attach_all(plane, settings))
    try:
        yield
    finally:
        attaching.cancel()
        await asyncio.wait({attaching})
        await plane.stop(drain_s=0.0)


async def attach_all(plane: ControlPlane, settings: GatewaySettings, first_wait_s: float = FIRST_WAIT_S) -> None:
    """Attach each engine server; returns once all are attached or given up.

    One that cannot be reached is tried again, for ever, with a growing wait; one that refuses us is given up.
    """
    key = settings.engine_api_key.get_secret_value() if settings.engine_api_key is not None else None
    await asyncio.gather(*(_attach(plane, url, key, first_wait_s) for url in settings.engines))


async def _attach(plane: ControlPlane, url: str, key: str | None, wait_s: float) -> None:
    while True:
        try:
            record = await plane.attach_engine(url, api_key=key)
        except SageLLMError as error:
            if not error.retryable:
                _log.error("engine server %s is given up: %s", url, error.message)
                return
            _log.warning("engine server %s is not there yet: %s (trying again in %.1f s)", url, error.message, wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        else:
            _log.info("engine server %s is attached as %s", url, record.info.engine_id)
            return
