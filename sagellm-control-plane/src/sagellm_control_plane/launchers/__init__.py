"""Ways to start engines, found by entry point in the group ``sagellm.launchers``; ours are the files of this folder."""

from __future__ import annotations

import asyncio

from sagellm_protocol import Launcher, plugins


async def launcher_named(name: str) -> Launcher:
    """Make the launcher of that name.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` for an unknown name, listing those there are.
    """
    launcher: Launcher = (await asyncio.to_thread(plugins.load, plugins.LAUNCHERS, name))()
    return launcher


__all__ = ["launcher_named"]
