"""What stands behind one engine of the plane, brought up and taken down: by its launcher, or as a client of its server.

Knows nothing of states, restarts or requests.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import anyio

from sagellm_protocol import EngineHandle, ErrorCode, Launcher, SageLLMError
from sagellm_protocol.interfaces import Engine

from .fleet import Attached, Launched, Member
from .foreign import ForeignEngine
from .launchers import Adopting, launcher_named
from .launchers.base import Leaving
from .remote.client import RemoteEngine

log = logging.getLogger(__name__)


async def start(member: Member, keep_in: Path | None = None) -> None:
    """Start or reach an engine; nothing is left of one for which that fails or is called off by ``member.starting``.

    The caller holds ``member.changing``.

    Args:
        member: The engine.
        keep_in: Where launchers that can do so keep what lets their engines be found again, should this process die;
            one found there is taken up rather than started.

    Raises:
        SageLLMError: The root cause, also where a launcher raised something else.
    """
    with anyio.CancelScope() as member.starting:
        try:
            if isinstance(member.origin, Launched):
                member.handle = await _launched(member.origin, member.engine_id, keep_in)
                member.engine = member.handle.engine
            else:
                member.engine = await _reached(member.origin)
        except SageLLMError:
            raise
        except Exception as error:
            log.exception("engine %s raised while it started", member.engine_id)
            raise SageLLMError(
                ErrorCode.ENGINE_FAILED, f"engine {member.engine_id} did not start: {type(error).__name__}: {error}"
            ) from error
        finally:
            member.starting = None


async def release(member: Member, limit_s: float, *, outlive: bool = False) -> None:
    """Free what an engine holds, dead or alive; whoever starts or frees it already is let finish.

    Args:
        member: The engine.
        limit_s: Longest to wait for the others, and again for the engine itself.
        outlive: Let an engine that can go on without this process do so.
    """
    try:
        await asyncio.wait_for(member.changing.acquire(), limit_s)
    except asyncio.TimeoutError:
        log.error("engine %s did not let go of its start within %g s", member.engine_id, limit_s)
        return
    try:
        await free(member, limit_s, outlive=outlive)
    finally:
        member.changing.release()


async def free(member: Member, limit_s: float, *, outlive: bool = False) -> None:
    """As :func:`release`, for callers that hold ``member.changing``."""
    engine, handle = member.engine, member.handle
    member.engine = member.handle = None
    try:
        if outlive and isinstance(handle, Leaving):
            await asyncio.wait_for(handle.leave(), limit_s)
        elif handle is not None:
            await asyncio.wait_for(handle.stop(), limit_s)
        elif engine is not None:
            await asyncio.wait_for(engine.stop(), limit_s)
    except asyncio.TimeoutError:
        log.error("engine %s did not stop within %g s", member.engine_id, limit_s)
    except Exception:
        log.exception("engine %s failed to stop", member.engine_id)


async def end_leftover(member: Member, keep_in: Path | None, limit_s: float) -> None:
    """End what still runs of an engine that a plane before was about to stop."""
    origin = member.origin
    if keep_in is None or not isinstance(origin, Launched):
        return
    launcher: Launcher = await launcher_named(origin.launcher, origin.launch)
    if isinstance(launcher, Adopting):
        member.handle = await launcher.keeping(keep_in).adopt(origin.spec, member.engine_id)
        await free(member, limit_s)


async def _launched(origin: Launched, engine_id: str, keep_in: Path | None) -> EngineHandle:
    launcher: Launcher = origin.through or await launcher_named(origin.launcher, origin.launch)
    if keep_in is not None and origin.through is None and isinstance(launcher, Adopting):
        launcher = launcher.keeping(keep_in)
        found = await launcher.adopt(origin.spec, engine_id)
        if found is not None:
            return found
    return await launcher.start(origin.spec, engine_id)


async def _reached(origin: Attached) -> Engine:
    """A client of what answers there: an engine server of ours, else one that speaks OpenAI's API."""
    if origin.url.startswith("openai+"):
        return await _started(ForeignEngine(origin.url, api_key=origin.api_key))
    try:
        return await _started(RemoteEngine(origin.url, api_key=origin.api_key))
    except SageLLMError as error:
        if error.code is not ErrorCode.UNSUPPORTED:
            raise
        try:
            return await _started(ForeignEngine(origin.url, api_key=origin.api_key))
        except SageLLMError as other:
            raise (error if other.code is ErrorCode.UNSUPPORTED else other) from error


async def _started(engine: RemoteEngine | ForeignEngine) -> Engine:
    try:
        await engine.start()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await engine.stop()
        raise
    return engine
