"""What stands behind one engine of the plane, brought up and taken down: by its launcher, or as a client of its server.

Knows nothing of states, restarts or requests.
"""

from __future__ import annotations

import asyncio
import logging

import anyio

from sagellm_protocol import ErrorCode, SageLLMError

from .fleet import Attached, Launched, Member
from .launchers import launcher_named
from .remote.client import RemoteEngine

log = logging.getLogger(__name__)


async def start(member: Member) -> None:
    """Start or reach an engine; nothing is left of one for which that fails or is called off by ``member.starting``.

    The caller holds ``member.changing``.

    Raises:
        SageLLMError: The root cause, also where a launcher raised something else.
    """
    with anyio.CancelScope() as member.starting:
        try:
            if isinstance(member.origin, Launched):
                launcher = member.origin.through or await launcher_named(member.origin.launcher)
                member.handle = await launcher.start(member.origin.spec, member.engine_id)
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


async def release(member: Member, limit_s: float) -> None:
    """Free what an engine holds, dead or alive; whoever starts or frees it already is let finish.

    Args:
        member: The engine.
        limit_s: Longest to wait for the others, and again for the engine itself.
    """
    try:
        await asyncio.wait_for(member.changing.acquire(), limit_s)
    except asyncio.TimeoutError:
        log.error("engine %s did not let go of its start within %g s", member.engine_id, limit_s)
        return
    try:
        await free(member, limit_s)
    finally:
        member.changing.release()


async def free(member: Member, limit_s: float) -> None:
    """As :func:`release`, for callers that hold ``member.changing``."""
    engine, handle = member.engine, member.handle
    member.engine = member.handle = None
    try:
        if handle is not None:
            await asyncio.wait_for(handle.stop(), limit_s)
        elif engine is not None:
            await asyncio.wait_for(engine.stop(), limit_s)
    except asyncio.TimeoutError:
        log.error("engine %s did not stop within %g s", member.engine_id, limit_s)
    except Exception:
        log.exception("engine %s failed to stop", member.engine_id)


async def _reached(origin: Attached) -> RemoteEngine:
    engine = RemoteEngine(origin.url, api_key=origin.api_key)
    try:
        await engine.start()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await engine.stop()
        raise
    return engine
