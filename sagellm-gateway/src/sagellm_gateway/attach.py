"""Attaches the engine servers that the settings name, and goes on trying while one is not there yet.

Knows nothing of what an engine serves.
"""

from __future__ import annotations

import asyncio
import logging

from sagellm_protocol import ControlPlane, SageLLMError

from .settings import GatewaySettings

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0

_log = logging.getLogger("sagellm_gateway")


async def attach_all(plane: ControlPlane, settings: GatewaySettings) -> None:
    """Attach each engine server; returns once all are attached or given up.

    One that cannot be reached is tried again, for ever, with a growing wait; one that refuses us is given up.
    """
    key = settings.engine_api_key.get_secret_value() if settings.engine_api_key is not None else None
    await asyncio.gather(*(_attach(plane, url, key) for url in settings.engines))


async def _attach(plane: ControlPlane, url: str, key: str | None) -> None:
    wait = FIRST_WAIT_S
    while True:
        try:
            record = await plane.attach_engine(url, api_key=key)
        except SageLLMError as error:
            if not error.retryable:
                _log.error("engine server %s is given up: %s", url, error.message)
                return
            _log.warning("engine server %s is not there yet: %s (trying again in %.1f s)", url, error.message, wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)
        else:
            _log.info("engine server %s is attached as %s", url, record.info.engine_id)
            return
