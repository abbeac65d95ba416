"""What launchers share. The interface itself is :class:`sagellm_protocol.Launcher`."""

from __future__ import annotations

from sagellm_protocol import EngineSpec, ErrorCode, SageLLMError, plugins
from sagellm_protocol.interfaces import Engine


def make_engine(spec: EngineSpec) -> Engine:
    """Make the engine that ``spec`` asks for; loads nothing of the model yet.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` for an unknown engine, listing those there are; or what the engine refuses.
    """
    create = plugins.load(plugins.ENGINES, spec.engine)
    engine = create(spec)
    if not isinstance(engine, Engine):
        raise SageLLMError(
            ErrorCode.NOT_INSTALLED,
            f"{spec.engine!r} of {plugins.ENGINES} makes a {type(engine).__name__}, which is no Engine",
        )
    return engine
