"""What launchers share. The interface itself is :class:`sagellm_protocol.Launcher`."""

from __future__ import annotations

from sagellm_protocol import EngineSpec, plugins
from sagellm_protocol.interfaces import Engine


def make_engine(spec: EngineSpec) -> Engine:
    """Make the engine that ``spec`` asks for; loads nothing of the model yet.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` for an unknown engine, listing those there are; or what the engine refuses.
    """
    engine: Engine = plugins.make(plugins.ENGINES, spec.engine, Engine, spec)
    return engine
