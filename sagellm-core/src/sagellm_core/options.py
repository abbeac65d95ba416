"""``EngineSpec.options`` of this engine: what it alone offers, by name.

Knows nothing of how it is honoured.
"""

from __future__ import annotations

from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

POOLING = "pooling"
"""Which hidden states become a vector (``mean``, ``cls``, ``last``), in place of what the checkpoint says."""
OPTIONS = (POOLING,)


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


def pooling_option(spec: EngineSpec) -> str | None:
    """The pooling that is asked for by name."""
    value = spec.options.get(POOLING)
    return None if value is None else str(value)
