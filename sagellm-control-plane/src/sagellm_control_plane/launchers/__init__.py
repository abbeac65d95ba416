"""Ways to start engines, found by entry point in the group ``sagellm.launchers``; ours are the files of this folder."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

from sagellm_protocol import ErrorCode, Launcher, SageLLMError, plugins

from .base import Adopting


async def launcher_named(name: str, options: Mapping[str, Any] | None = None) -> Launcher:
    """Make the launcher of that name.

    Args:
        name: Of an entry point.
        options: Its own, by name.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` for an unknown name, listing those there are; ``INVALID_REQUEST`` for options
            that it does not take.
    """
    create = await asyncio.to_thread(plugins.load, plugins.LAUNCHERS, name)
    try:
        inspect.signature(create).bind(**(options or {}))
    except TypeError as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"the launcher {name!r} does not take these options: {error}", "launch"
        ) from None
    launcher: Launcher = create(**(options or {}))
    return launcher


__all__ = ["Adopting", "launcher_named"]
