"""What engines do: starting, reaching, watching, restarting, draining and stopping them, each in a task of its own.

One engine that hangs or dies never holds up another. Knows of requests only that they must leave a dead engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

import anyio

from sagellm_protocol import (
    EngineRecord,
    EngineSpec,
    EngineState,
    EngineStats,
    ErrorCode,
    KVEventBatch,
    SageLLMError,
    SleepControl,
)
from sagellm_protocol.interfaces import KVEventSource

from .background import Background
from .circuit import Circuit
from .dispatch import Dispatcher
from .fleet import Attached, Fleet, Launched, Member
from .registry.keeper import Keeper
from .settings import PlaneSettings
from .sleeping import sleeper
from .starting import end_leftover, free, release, start

log = logging.getLogger(__name__)
_TROUBLE = (ErrorCode.ENGINE_FAILED, ErrorCode.UNAVAILABLE)


class Crew:
    """Looks after the engines of one fleet.

    Args:
        fleet: The engines; this class alone adds and removes them and changes their state.
        dispatcher: Told of every change.
        settings: Intervals, limits and restarts.
        background: Keeps the tasks.
        clock: Monotonic seconds.
        keeper: Told what becomes of engines.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        settings: PlaneSettings,
        background: Background,
        clock: Callable[[], float],
        keeper: Keeper,
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._settings = settings
        self._background = background
        self._clock = clock
        self._keeper = keeper
        self._outlive = False
        self._leftovers: dict[str, asyncio.Task[None]] = {}

    # --- coming -------------------------------------------------------------------------------------------------------

    async def launch(self, spec: EngineSpec, launcher: str, engine_id: str | None) -> EngineRecord:
        """Start an engine; returns once it is ready.

        Raises:
            SageLLMError: ``CONFLICT`` for an id in use; the root cause when it does not start; ``CANCELLED``
                when it was stopped meanwhile.
        """
        member = Member(engine_id or _minted(spec.engine), Launched(launcher, spec), spec.names)
        return await self.admit(member)

    async def attach(self, url: str, engine_id: str | None, api_key: str | None) -> EngineRecord:
        """Reach an engine server.

        Raises:
            SageLLMError: ``CONFLICT`` for an id in use; ``UNAVAILABLE`` when nothing answers at ``url``.
        """
        return await self.admit(Member(engine_id or _minted("remote"), Attached(url, api_key), ()))

    def expect(self, member: Member) -> None:
        """Take in an engine that is not there yet: it is started, or reached, as soon as that works.

        Raises:
            SageLLMError: ``CONFLICT`` for an id in use.
        """
        self._fleet.add(member)
        self._keeper.changed(member)
        self._background.spawn(self._watch(member), f"watch {member.engine_id}")

    def follow(self, listed: Mapping[str, Member]) -> None:
        """Of engines that a file asks for, have those that it lists now: add, replace and stop in the background."""
        for member in self._fleet:
            if member.source == "discovered" and member.engine_id not in listed:
                self._background.spawn(
                    self.stop(member.engine_id, self._settings.stop_timeout_s), f"stop {member.engine_id}"
                )
        for member in listed.values():
            known = self._fleet.get(member.engine_id)
            if known is None:
                self._background.spawn(self._replace(None, member), f"add {member.engine_id}")
            elif known.origin != member.origin:
                self._background.spawn(self._replace(known, member), f"replace {member.engine_id}")
            else:
                known.source, known.weight = member.source, member.weight
                self._keeper.changed(known)

    async def _replace(self, known: Member | None, member: Member) -> None:
        if known is not None:
            await self.stop(known.engine_id, self._settings.stop_timeout_s)
        await self._finished_leaving(member.engine_id)
        self.expect(member)

    def restore(self, kept: Iterable[tuple[Member, bool]]) -> None:
        """Take in engines that were kept: reach or start those there are to be, end those that were being stopped."""
        for member, leaving in kept:
            if leaving:
                self._leftovers[member.engine_id] = self._background.spawn(
                    self._end_leftover(member), f"end {member.engine_id}"
                )
            elif member.engine_id not in self._fleet:
                self.expect(member)

    async def _end_leftover(self, member: Member) -> None:
        try:
            await end_leftover(member, self._keeper.folder, self._settings.stop_timeout_s)
            self._keeper.gone(member)
        finally:
            del self._leftovers[member.engine_id]

    async def _finished_leaving(self, engine_id: str) -> None:
        leftover = self._leftovers.get(engine_id)
        if leftover is not None:
            await asyncio.wait({leftover})

    async def want(self, member: Member) -> EngineRecord:
        """See that an engine of an id runs as ``member`` says: one that does so is left alone, another is replaced.

        Raises:
            SageLLMError: As :meth:`launch` and :meth:`attach`.
        """
        known = self._fleet.get(member.engine_id)
        if known is not None and known.origin == member.origin:
            known.source = member.source
            while known.hopeful and not known.ready:
                known.moved.clear()
                await _within(self._settings.poll_interval_s, known.moved.wait())
            if known.ready:
                self._keeper.changed(known)
                return known.record()
        if self._fleet.get(member.engine_id) is not None:
            await self.stop(member.engine_id, self._settings.stop_timeout_s)
        return await self.admit(member)

    async def admit(self, member: Member) -> EngineRecord:
        """Take in an engine that is to be started or reached; returns once it is ready.

        Raises:
            SageLLMError: As :meth:`launch` and :meth:`attach`.
        """
        await self._finished_leaving(member.engine_id)
        self._fleet.add(member)
        try:
            await self._keeper.joining(member)
            await self._bring_up(member)
        except BaseException:
            self._forget(member)
            self._keeper.gone(member)
            raise
        self._background.spawn(self._watch(member), f"watch {member.engine_id}")
        return member.record()

    async def _bring_up(self, member: Member) -> None:
        """Start or reach an engine, unless it is stopped meanwhile."""
        async with member.changing:
            if member.state is not EngineState.STOPPED:
                await start(member, self._keeper.folder)
            if member.state is EngineState.STOPPED or member.engine is None:
                with anyio.CancelScope(shield=True):
                    await free(member, self._settings.stop_timeout_s)
                raise SageLLMError(ErrorCode.CANCELLED, f"engine {member.engine_id} was stopped while it started")
        member.failures, member.last_heard = 0, time.time()
        member.circuit = Circuit(self._settings.tolerance)
        member.load.forget_foreign()
        member.learn(self._settings.default_capacity, self._settings.slack)
        self._fleet.rename(member, member.engine.info.names or member.names)
        if self._dispatcher.wants_cache_events and isinstance(member.engine, KVEventSource):
            # Asked for before anything is sent there: what comes later is only what changes.
            self._background.spawn(self._listen(member, member.engine.kv_events()), f"listen {member.engine_id}")
        member.become(EngineState.READY)
        if member.unwanted:
            member.become(EngineState.DRAINING)
        self._keeper.changed(member)
        self._keeper.heard(member)
        self._dispatcher.fleet_changed()

    async def _listen(self, member: Member, events: AsyncIterator[KVEventBatch]) -> None:
        """Pass on what an engine tells of its cache, until it stops."""
        engine = member.engine
        try:
            async for batch in events:
                if member.engine is not engine:
                    return
                self._dispatcher.cache_changed(member, batch)
        except SageLLMError as error:
            log.warning("engine %s tells no more of its cache: %s", member.engine_id, error.message)

    # --- watching -----------------------------------------------------------------------------------------------------

    def attempt_failed(self, member: Member, error: SageLLMError) -> None:
        """Trust an engine less until it was looked at, which is done at once; one that knows it is dead is believed."""
        if error.code not in _TROUBLE or member.state is EngineState.STOPPED:
            return
        member.failures += 1
        member.poke.set()
        if member.engine is not None and member.engine.info.state is EngineState.ERROR:
            self.died(member, member.engine.info.error or error.message)

    async def _watch(self, member: Member) -> None:
        while member.state is not EngineState.STOPPED:
            member.poke.clear()
            if member.state is EngineState.ERROR and self.may_restart(member):
                await self._restart(member)
            elif member.engine is None:
                await self._reach(member)
            else:
                await self._look(member)
            if not member.restarting:
                await _within(self._settings.poll_interval_s, member.poke.wait())

    async def _look(self, member: Member) -> None:
        engine, limit = member.engine, self._settings.poll_timeout_s
        if engine is None:
            return
        try:
            stats = await asyncio.wait_for(engine.stats(), limit)
        except asyncio.TimeoutError:
            await self._unheard(member, f"it did not answer within {limit:g} s")
        except SageLLMError as error:
            await self._unheard(member, error.message)
        except Exception as error:
            log.exception("engine %s raised when asked for its stats", member.engine_id)
            await self._unheard(member, f"{type(error).__name__}: {error}")
        else:
            self._heard(member, stats)

    def _heard(self, member: Member, stats: EngineStats) -> None:
        if member.engine is None or member.state is EngineState.STOPPED:
            return
        now = self._clock()
        member.stats, member.last_heard = stats, time.time()
        if stats.state in (EngineState.ERROR, EngineState.STOPPED):
            self.died(member, member.engine.info.error or f"it reports state {stats.state.value}")
            return
        member.failures = 0
        self._keeper.heard(member)
        member.learn(self._settings.default_capacity, self._settings.slack)
        self.renamed(member)
        member.load.measure(now)
        member.load.reported(stats, member.capabilities.block_size)
        self._dispatcher.measured(member)
        if member.restarted_at is not None and now - member.restarted_at > self._settings.restart_forgiven_s:
            member.restarts, member.restarted_at = 0, None
        if member.state is EngineState.ERROR and stats.state is EngineState.READY:
            self._fleet.rename(member, member.engine.info.names or member.names)
            member.become(EngineState.DRAINING if member.unwanted else EngineState.READY)
            self._dispatcher.fleet_changed()
        else:
            # Room may have grown, or the engine may have left a drain of its own.
            self._dispatcher.pump()

    def renamed(self, member: Member) -> None:
        """Take in the names that an engine serves now: adapters come and go."""
        names = member.engine.info.names if member.engine is not None else ()
        if names and names != member.names:
            self._fleet.rename(member, names)
            self._dispatcher.fleet_changed()

    async def _unheard(self, member: Member, reason: str) -> None:
        """Nothing was heard of an engine: its launcher may know for certain that it is gone."""
        handle = member.handle
        if handle is not None and await handle.status() is EngineState.ERROR:
            self.died(member, " | ".join(["its process ended", *await handle.logs(5)]))
        else:
            self.failed(member, reason)

    def failed(self, member: Member, reason: str) -> None:
        """Note a failed look; enough of them in a row make an engine dead."""
        member.failures += 1
        if member.failures >= self._settings.failures_threshold:
            self.died(member, reason)

    def lost(self, engine_id: str, reason: str) -> None:
        """An engine's lease ran out."""
        member = self._fleet.get(engine_id)
        if member is not None and member.state in (EngineState.READY, EngineState.DRAINING):
            self.died(member, reason)

    def died(self, member: Member, reason: str) -> None:
        """Send nothing more to an engine, and take what it has elsewhere."""
        if member.state in (EngineState.ERROR, EngineState.STOPPED):
            return
        log.warning("engine %s counts as dead: %s", member.engine_id, reason)
        member.become(EngineState.ERROR, reason)
        # What it last told of its load is no longer so.
        member.stats = None
        self._dispatcher.cache_lost(member)
        member.restarting = self.may_restart(member)
        member.poke.set()
        loss = SageLLMError(ErrorCode.ENGINE_FAILED, f"engine {member.engine_id} died: {reason}")
        for ticket in tuple(member.tickets.values()):
            ticket.interrupt(loss, final=False)
        for rendering in tuple(member.renders):
            rendering.interrupt()
        self._dispatcher.fleet_changed()

    async def _reach(self, member: Member) -> None:
        """Start an engine that was not yet started, or try to reach one that runs elsewhere."""
        launched = isinstance(member.origin, Launched)
        if launched and member.state is not EngineState.STARTING:
            return
        try:
            await self._bring_up(member)
        except SageLLMError as error:
            member.may_recover = error.retryable
            if launched:
                self.died(member, error.message)
            else:
                self.failed(member, error.message)

    # --- restarting ---------------------------------------------------------------------------------------------------

    def may_restart(self, member: Member) -> bool:
        """Whether it would be started anew if it died."""
        return (
            self._settings.auto_restart
            and isinstance(member.origin, Launched)
            and member.may_recover
            and not member.unwanted
            and member.restarts < self._settings.max_restarts
        )

    async def _restart(self, member: Member) -> None:
        """Start an engine anew, waiting twice as long before each try."""
        member.restarting = True
        try:
            delay = self._settings.restart_backoff_s * 2**member.restarts
            member.restarts += 1
            member.restarted_at, member.restarted_unix = self._clock(), time.time()
            await asyncio.sleep(delay)
            await release(member, self._settings.stop_timeout_s)
            if member.state is EngineState.STOPPED:
                return
            member.become(EngineState.STARTING)
            await self._bring_up(member)
        except SageLLMError as error:
            if member.state is not EngineState.STOPPED:
                log.warning("engine %s did not restart: %s", member.engine_id, error.message)
                member.may_recover = error.retryable
                member.become(EngineState.ERROR, error.message)
        finally:
            member.restarting = member.state is EngineState.ERROR and self.may_restart(member)
            self._dispatcher.fleet_changed()

    # --- going --------------------------------------------------------------------------------------------------------

    async def drain(self, engine_id: str) -> None:
        """Send an engine nothing new; returns once it has nothing in flight here.

        Raises:
            SageLLMError: ``NOT_FOUND`` for an unknown id; ``CONFLICT`` for an engine that has not started.
        """
        member = self._fleet.member(engine_id)
        if member.state is EngineState.STARTING:
            raise SageLLMError(ErrorCode.CONFLICT, f"engine {engine_id} is starting; stop it instead", "engine_id")
        self.begin_drain(member)
        await _emptied(member)

    def begin_drain(self, member: Member) -> None:
        """Send an engine nothing new."""
        if member.state is EngineState.READY:
            member.unwanted = True
            member.become(EngineState.DRAINING)
            self._keeper.changed(member)
            self._dispatcher.fleet_changed()

    async def change(self, engine_id: str, change: Callable[[SleepControl], Awaitable[None]]) -> None:
        """Have an engine give up memory or take it back; nothing is sent to it until it says that it is ready.

        Raises:
            SageLLMError: ``NOT_FOUND`` for an unknown id; ``UNAVAILABLE`` for one that does not run; ``UNSUPPORTED``
                for one that cannot; what the engine raises.
        """
        member = self._fleet.member(engine_id)
        if member.engine is None:
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"engine {engine_id} is {member.state.value}")
        changing = asyncio.ensure_future(change(sleeper(member.engine)))
        try:
            await asyncio.sleep(0)  # it has said what it does by then, where it is in this process
            self._learn(member)
            await changing
        finally:
            changing.cancel()
            self._learn(member)

    def _learn(self, member: Member) -> None:
        if member.engine is not None and member.state is not EngineState.STOPPED:
            member.learn(self._settings.default_capacity, self._settings.slack)
            self._dispatcher.fleet_changed()

    async def stop(self, engine_id: str, drain_s: float | None = None) -> None:
        """Let an engine finish within ``drain_s``, take what is left elsewhere, and stop it or let it go.

        Raises:
            SageLLMError: ``NOT_FOUND`` for an unknown id.
        """
        member = self._fleet.member(engine_id)
        self.begin_drain(member)
        if drain_s:
            await _within(drain_s, _emptied(member))
        if member.state is not EngineState.STOPPED:
            await self.leave(engine_id)

    def leave(self, engine_id: str) -> Coroutine[Any, Any, None]:
        """Send an engine nothing from this call on; what is returned frees what it holds."""
        member = self._fleet.member(engine_id)
        member.become(EngineState.STOPPED)
        self._forget(member)
        loss = SageLLMError(ErrorCode.UNAVAILABLE, f"engine {engine_id} was stopped")
        for ticket in tuple(member.tickets.values()):
            ticket.interrupt(loss, final=False)
        if member.starting is not None:
            member.starting.cancel()
        return self._clear_out(member)

    async def _clear_out(self, member: Member) -> None:
        await self._keeper.leaving(member)
        await _within(self._settings.abort_timeout_s, _emptied(member))
        await release(member, self._settings.stop_timeout_s, outlive=self._outlive)
        self._keeper.gone(member)

    async def dismiss(self) -> None:
        """Stop them all, side by side, but those that are to outlive this process. All are there when it is back."""
        self._keeper.going_away()
        self._outlive = self._settings.engines_outlive
        results = await asyncio.gather(*(self.stop(member.engine_id) for member in self._fleet), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                log.error("stopping an engine failed", exc_info=result)

    def _forget(self, member: Member) -> None:
        if member.state is not EngineState.STOPPED:
            member.become(EngineState.STOPPED)
        member.poke.set()
        self._fleet.remove(member)
        self._dispatcher.fleet_changed()


def _minted(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:8]}"


async def _emptied(member: Member) -> None:
    while member.tickets:
        member.emptied.clear()
        await member.emptied.wait()


async def _within(seconds: float, wait: Awaitable[object]) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(wait, seconds)
