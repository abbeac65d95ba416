"""``EngineSpec.options`` of this engine: what it alone offers, by name.

Knows nothing of how it is honoured.
"""

from __future__ import annotations

from pathlib import Path

from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

POOLING = "pooling"
"""Which hidden states become a vector (``mean``, ``cls``, ``last``), in place of what the checkpoint says."""
STEP_LOG = "step_log"
"""Path of a file that gets a line of JSON for each step."""
DETERMINISTIC = "deterministic"
"""Whether to start only where a request's tokens and log-probabilities cannot depend on what runs beside it."""
OPTIONS = (DETERMINISTIC, POOLING, STEP_LOG)


def check_options(spec: EngineSpec) -> None:
    """Refuse an option that is not offered, and a value that cannot be.

    Raises:
        SageLLMError: ``INVALID_REQUEST``, naming it and what is offered.
    """
    for name in spec.options:
        if name not in OPTIONS:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"engine {spec.engine!r} has no option {name!r}; it has {', '.join(OPTIONS)}",
                f"options.{name}",
            )
    from .loading.pooling import chosen_pooling

    chosen_pooling(None, pooling_option(spec))
    step_log_option(spec)
    deterministic_option(spec)


def deterministic_option(spec: EngineSpec) -> bool:
    """Whether a request's numbers must be its own.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for what is neither true nor false, or where nothing keeps it.
    """
    value = spec.options.get(DETERMINISTIC, False)
    if not isinstance(value, bool):
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"deterministic is {value!r}; give true or false", f"options.{DETERMINISTIC}"
        )
    return value


def pooling_option(spec: EngineSpec) -> str | None:
    """The pooling that is asked for by name."""
    value = spec.options.get(POOLING)
    return None if value is None else str(value)


def step_log_option(spec: EngineSpec) -> Path | None:
    """Where steps are logged, if they are.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for what is no path.
    """
    value = spec.options.get(STEP_LOG)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"step_log is {value!r}; give the path of a file", f"options.{STEP_LOG}"
        )
    return Path(value)
