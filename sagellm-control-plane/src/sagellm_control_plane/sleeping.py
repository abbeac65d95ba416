"""Engines that can give up their memory for a while, told from those that cannot.

Knows nothing of planes or HTTP.
"""

from __future__ import annotations

from sagellm_protocol import ErrorCode, SageLLMError, SleepControl
from sagellm_protocol.interfaces import Engine


def sleeper(engine: Engine) -> SleepControl:
    """The engine, as what can be put to sleep.

    Raises:
        SageLLMError: ``UNSUPPORTED`` when it cannot.
    """
    if isinstance(engine, SleepControl):
        return engine
    raise SageLLMError(
        ErrorCode.UNSUPPORTED,
        f"engine {engine.info.engine_id} ({engine.info.engine}) can neither sleep nor reload weights; stop it instead",
    )
