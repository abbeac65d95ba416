"""The control plane: takes requests in, gives each to an engine, and sees that each ends exactly once.

Knows nothing of tokens' meaning or of HTTP. Decisions are made in :mod:`.dispatch`, engines kept by :mod:`.crew`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from sagellm_protocol import (
    AdapterSpec,
    EmbedRequest,
    EmbedResponse,
    EndEvent,
    EngineRecord,
    EngineSpec,
    EngineState,
    ErrorCode,
    ErrorEvent,
    ModelInfo,
    PlaneStatus,
    RenderedPrompt,
    Request,
    RequestEnding,
    SageLLMError,
    ScoreRequest,
    ScoreResponse,
    SleepMode,
    StreamEvent,
)
from sagellm_protocol.interfaces import Engine, check_sleep

from .adapters import AdapterDesk
from .admission import Admission
from .aliases import Aliases
from .attempts import Attempts
from .background import Background
from .breaking import Breakers
from .crew import Crew
from .discovery import Discovery, Listing
from .dispatch import Dispatcher
from .elastic import Elastic
from .fleet import Attached, Fleet, Launched, Member
from .ledger import Ledger
from .policies import Fair, Policy, policy_named
from .registry import Registry
from .registry.keeper import Keeper, member_of
from .rendering import RenderDesk
from .routing import router_named
from .scaling import ScalingSettings
from .settings import PlaneSettings
from .ticket import AnyRequest, Hints, Ticket

R = TypeVar("R", EmbedRequest, ScoreRequest)
T = TypeVar("T")
NO_HINTS = Hints()


class ControlPlaneService:
    """Many engines behind one door; implements :class:`sagellm_protocol.ControlPlane`. Belongs to one event loop.

    Args:
        settings: What an operator may set.
        clock: Monotonic seconds.
        rng: The only source of chance in routing.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an unknown policy or routing strategy, listing those there are.
    """

    def __init__(
        self,
        settings: PlaneSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings or PlaneSettings()
        rng = rng or random.Random()
        self.fleet = Fleet()
        self.ledger = Ledger()
        self.dispatcher = Dispatcher(
            self.fleet,
            self._policy(self.settings),
            router_named(self.settings.routing),
            clock,
            rng,
        )
        self._clock = clock
        self._background = Background()
        path = None if self.settings.registry is None else Path(self.settings.registry)
        self.registry = Registry(path, self.settings.lease)
        self._keeper = Keeper(self.registry, path, self.settings.lease)
        self.crew = Crew(self.fleet, self.dispatcher, self.settings, self._background, clock, self._keeper)
        self.aliases = Aliases(self.registry, self.fleet, rng)
        self._discovery = None if self.settings.discover is None else self._discovered(Path(self.settings.discover))
        self._watches = False
        self.elastic = Elastic(self.fleet, self.dispatcher, self.crew, self._background, clock)
        self._desk = RenderDesk(self.fleet, self.settings.render_timeout_s)
        self._adapters = AdapterDesk(self.fleet, self.crew)
        self._admission = Admission(
            self.fleet, self.dispatcher, self.ledger, self.settings.max_queued, clock, self.aliases.resolve
        )
        self.breakers = Breakers(self.fleet, self.dispatcher)
        self.dispatcher.on_change(self.breakers.fleet_changed)
        self.attempts = Attempts(
            self._admission,
            self.dispatcher,
            self.crew,
            self.breakers,
            self._desk,
            self._background,
            self.settings,
            clock,
        )

    @staticmethod
    def _policy(settings: PlaneSettings) -> Policy:
        policy = policy_named(settings.policy)
        if isinstance(policy, Fair):
            policy.weigh(settings.tenant_weights)
        elif settings.tenant_weights:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"tenant_weights need the policy 'fair' (got {settings.policy!r})",
                "tenant_weights",
            )
        return policy

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to serve, with the engines that the registry keeps. Safe to call again, also after :meth:`stop`.

        Raises:
            SageLLMError: The registry cannot be used; see :class:`~.registry.store.Store`.
        """
        opened = await self.registry.open()
        self._admission.closed = False
        self._keeper.back()
        if opened:
            self.crew.restore((member_of(entry), entry.leaving) for entry in self.registry.entries)
        if self._watches:
            return
        self._watches = True
        self._background.spawn(self._keeper.watch_leases(self.crew.lost), "leases")
        if self._discovery is not None:
            self._background.spawn(self._discovery.watch(), "discovery")

    async def stop(self, drain_s: float | None = None) -> None:
        """Refuse what is new, let what is in flight end within ``drain_s``, cancel the rest, stop its engines."""
        self._admission.closed = True
        self.elastic.close()
        if drain_s and self.ledger.in_flight:
            await _within(drain_s, self.ledger.idle())
        for ticket in self.ledger.tickets():
            self._interrupt(ticket, SageLLMError(ErrorCode.CANCELLED, "the control plane is shutting down"))
        await _within(self.settings.abort_timeout_s, self.ledger.idle())
        await self.crew.dismiss()
        await self._background.cancel()
        self._watches = False
        await self.registry.close()

    # --- requests -----------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> AsyncGenerator[StreamEvent, None]:
        """Serve a generation request; its last event is terminal, whatever happens."""
        return self.submit_with(request, NO_HINTS)

    def submit_with(self, request: Request, hints: Hints) -> AsyncGenerator[StreamEvent, None]:
        """As :meth:`submit`, with wishes that the wire request has no field for."""
        return self._serve(request, lambda: self.accept(request, hints))

    def run(self, ticket: Ticket) -> AsyncGenerator[StreamEvent, None]:
        """Serve a generation request that was accepted. Closing it early cancels the request."""
        return self._serve(ticket.request, lambda: ticket)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Serve an embedding request."""
        return await self.run_embed(self.accept(request), request)

    async def run_embed(self, ticket: Ticket, request: EmbedRequest) -> EmbedResponse:
        """Serve an embedding request that was accepted."""
        response = await self._call(ticket, request, lambda engine: engine.embed)
        return response.model_copy(update={"request_id": request.request_id, "model": request.model})

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Serve a scoring request."""
        response = await self._call(self.accept(request), request, lambda engine: engine.score)
        return response.model_copy(update={"request_id": request.request_id, "model": request.model})

    async def cancel(self, request_id: str) -> bool:
        """End all requests in flight whose caller uses this id."""
        tickets = self.ledger.known_as(request_id)
        for ticket in tickets:
            self.cancel_ticket(ticket)
        return bool(tickets)

    def cancel_ticket(self, ticket: Ticket) -> None:
        """End one request in flight."""
        name = ticket.request.request_id
        self._interrupt(ticket, SageLLMError(ErrorCode.CANCELLED, f"request {name!r} was cancelled"))

    async def render(self, request: Request) -> RenderedPrompt:
        """The prompt as the model that ``request`` names would read it."""
        ticket = self._admission.ticket(request, NO_HINTS)
        asked = ticket.request
        assert isinstance(asked, Request)
        return (await self._desk.render(asked, self._admission.askable(ticket)))[0]

    # --- engines and what is known of them ----------------------------------------------------------------------------

    async def models(self) -> Sequence[ModelInfo]:
        """Models that can be asked for."""
        return self.aliases.models([*self.fleet.models(), *self.elastic.models()])

    async def status(self) -> PlaneStatus:
        """The plane and its engines now."""
        return self.status_now()

    def status_now(self) -> PlaneStatus:
        """As :meth:`status`, for callers that cannot wait."""
        reason = self._why_unready()
        return PlaneStatus(
            ready=reason is None,
            reason=reason,
            engines=tuple(member.record() for member in self.fleet),
            queued=self._admission.waiting,
            in_flight=self.ledger.in_flight,
            accepted=self.ledger.accepted,
            ended=dict(self.ledger.ended),
            refused_early=self.ledger.refused_early,
            troubles=self._troubles(),
            scaling=self.elastic.status(),
            circuits_opened=self.breakers.opened,
            **self.attempts.counts(),
        )

    async def start_engine(
        self, spec: EngineSpec, launcher: str = "local", engine_id: str | None = None
    ) -> EngineRecord:
        """Launch an engine and serve through it; returns once it is ready.

        With :attr:`PlaneSettings.scaling` it is the first of as many as the load needs.
        """
        record = await self.crew.launch(spec, launcher, engine_id)
        if self.settings.scaling is not None and not self.elastic.scales(spec.names):
            self.elastic.add(spec, launcher, self.settings.scaling)
        return record

    def scale(self, spec: EngineSpec, launcher: str = "local", settings: ScalingSettings | None = None) -> None:
        """Let a model have as many engines as its load needs, started and stopped here; returns at once.

        Raises:
            SageLLMError: ``CONFLICT`` for a model that is scaled already.
        """
        self.elastic.add(spec, launcher, settings or self.settings.scaling or ScalingSettings())

    def unscale(self, model: str) -> None:
        """Let a model keep the engines it has now.

        Raises:
            SageLLMError: ``NOT_FOUND`` for a model that is not scaled.
        """
        self.elastic.remove(model)

    async def attach_engine(self, url: str, engine_id: str | None = None, api_key: str | None = None) -> EngineRecord:
        """Serve through an engine server that runs elsewhere."""
        return await self.crew.attach(url, engine_id, api_key)

    async def drain_engine(self, engine_id: str) -> None:
        """Send it nothing new; returns once it has nothing in flight."""
        await self.crew.drain(engine_id)

    async def stop_engine(self, engine_id: str, drain_s: float | None = None) -> None:
        """Stop an engine this plane launched, or let go of one it attached."""
        await self.crew.stop(engine_id, drain_s)

    async def sleep_engine(self, engine_id: str, level: int = 1, mode: SleepMode = "wait") -> None:
        """Have an engine give memory up."""
        check_sleep(level, mode)
        await self.crew.change(engine_id, lambda engine: engine.sleep(level, mode))

    async def wake_engine(self, engine_id: str) -> None:
        """Have an engine be ready again."""
        await self.crew.change(engine_id, lambda engine: engine.wake())

    async def reload_engine(self, engine_id: str, model: str, revision: str | None = None) -> None:
        """Have an engine take other weights."""
        await self.crew.change(engine_id, lambda engine: engine.reload(model, revision))

    async def load_adapter(self, adapter: AdapterSpec) -> None:
        """Serve a LoRA adapter through every engine of its model."""
        await self._adapters.load(adapter)

    async def unload_adapter(self, name: str) -> None:
        """Serve it no more."""
        await self._adapters.unload(name)

    async def want_engine(self, engine_id: str, spec: EngineSpec, launcher: str = "local") -> EngineRecord:
        """See that an engine of that id runs as ``spec`` asks; returns once it is ready.

        One that does, as the registry brought it back, is left alone; another is replaced.

        Raises:
            SageLLMError: As :meth:`start_engine`.
        """
        return await self.crew.want(Member(engine_id, Launched(launcher, spec), spec.names))

    async def want_attached(self, engine_id: str, url: str, api_key: str | None = None) -> EngineRecord:
        """As :meth:`want_engine`, for one that runs elsewhere.

        Raises:
            SageLLMError: As :meth:`attach_engine`.
        """
        return await self.crew.want(Member(engine_id, Attached(url, api_key), ()))

    def heartbeat(self, engine_id: str) -> None:
        """An engine says that it lives: its lease is renewed, and if it counts as dead it is looked at now.

        Raises:
            SageLLMError: ``NOT_FOUND`` for an unknown id.
        """
        member = self.fleet.member(engine_id)
        self._keeper.heard(member)
        if not member.ready:
            member.poke.set()

    def weigh_engine(self, engine_id: str, weight: float) -> None:
        """Set an engine's share of requests, where routing goes by weights.

        Raises:
            SageLLMError: ``NOT_FOUND`` for an unknown id; ``INVALID_REQUEST`` for what is no weight.
        """
        member = self.fleet.member(engine_id)
        if not (math.isfinite(weight) and weight >= 0):
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"a weight is 0 or more (got {weight!r})", "weight")
        member.weight = weight
        self._keeper.changed(member)

    def _discovered(self, path: Path) -> Discovery:
        def follow(listing: Listing) -> None:
            self.aliases.follow(listing.aliases)
            self.crew.follow({one: member_of(entry) for one, entry in listing.engines.items()})

        return Discovery(path, self.settings.discover_interval_s, follow)

    # --- how a request goes -------------------------------------------------------------------------------------------

    async def _serve(self, request: AnyRequest, admit: Callable[[], Ticket]) -> AsyncGenerator[StreamEvent, None]:
        """Take a generation request in once its events are asked for, and serve it."""
        try:
            ticket = admit()
        except SageLLMError as error:
            yield ErrorEvent(request_id=request.request_id, error=error.info())
            return
        timer = self._arm(ticket)
        try:
            async with aclosing(self.attempts.generate(ticket)) as events:
                async for event in events:
                    if isinstance(event, EndEvent):
                        self._end(ticket, RequestEnding.COMPLETED)
                    elif isinstance(event, ErrorEvent):
                        self._end(ticket, RequestEnding.of(event.error.code))
                    yield event
        finally:
            if timer is not None:
                timer.cancel()
            # Reached without an ending only when the caller left.
            self._end(ticket, RequestEnding.CANCELLED)

    def accept(self, request: AnyRequest, hints: Hints = NO_HINTS) -> Ticket:
        """Take a request in, to be run at once by whoever called.

        Raises:
            SageLLMError: It is refused before it counts.
        """
        return self._admission.accept(request, hints)

    async def _call(self, ticket: Ticket, request: R, method: Callable[[Engine], Callable[[R], Awaitable[T]]]) -> T:
        timer = self._arm(ticket)
        try:
            answer = await self.attempts.call(ticket, request, method)
            self._end(ticket, RequestEnding.COMPLETED)
        except SageLLMError as error:
            self._end(ticket, RequestEnding.of(error.code))
            raise
        else:
            return answer
        finally:
            if timer is not None:
                timer.cancel()
            # Reached without an ending only when the caller left.
            self._end(ticket, RequestEnding.CANCELLED)

    def _arm(self, ticket: Ticket) -> asyncio.TimerHandle | None:
        """Let a request expire at its deadline."""
        if ticket.deadline is None:
            return None
        allowed = ticket.deadline - ticket.arrived
        error = SageLLMError(
            ErrorCode.DEADLINE_EXCEEDED, f"the request's deadline of {allowed * 1000:.0f} ms has passed"
        )
        return asyncio.get_running_loop().call_later(allowed, self._interrupt, ticket, error)

    def _end(self, ticket: Ticket, ending: RequestEnding) -> None:
        """Close a request and free its place; the first ending stands."""
        if ticket.ending is None:
            self.ledger.end(ticket, ending, self._clock())
            self.dispatcher.withdraw(ticket)

    def _interrupt(self, ticket: Ticket, error: SageLLMError) -> None:
        """End a request from outside, whatever it waits for."""
        acting = ticket.acting
        engine, attempt_id = acting.member.engine if acting.member is not None else None, acting.attempt_id
        if ticket.interrupt(error, final=True):
            return
        # Its caller is busy with what it was given: end it and free the engine now rather than when it asks for more.
        self._end(ticket, RequestEnding.of(error.code))
        if engine is not None and attempt_id is not None:
            self._background.spawn(self._abort(engine, attempt_id), f"abort {attempt_id}")

    async def _abort(self, engine: Engine, attempt_id: str) -> None:
        with contextlib.suppress(asyncio.TimeoutError, SageLLMError):
            await asyncio.wait_for(engine.abort(attempt_id), self.settings.abort_timeout_s)

    def _troubles(self) -> tuple[str, ...]:
        listed = None if self._discovery is None else self._discovery.trouble
        return tuple(trouble for trouble in (self.registry.trouble, listed) if trouble is not None)

    def _why_unready(self) -> str | None:
        if self._admission.closed:
            return "the control plane is shutting down"
        infos = [member.info for member in self.fleet]
        if any(info.state is EngineState.READY for info in infos) or self.elastic.models():
            return None
        if not infos:
            return "no engine was started or attached"
        return "; ".join(
            f"{info.engine_id} is {info.state.value}" + f" ({info.error})" * bool(info.error) for info in infos
        )


async def _within(seconds: float, wait: Awaitable[None]) -> bool:
    try:
        await asyncio.wait_for(wait, seconds)
    except asyncio.TimeoutError:
        return False
    return True


def create(settings: PlaneSettings | None = None, **options: Any) -> ControlPlaneService:
    """A control plane; entry point ``default`` of the group ``sagellm.control_planes``.

    Args:
        settings: What an operator may set.
        options: The same as keywords, in place of ``settings``.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming what is unknown or out of range.
    """
    if settings is not None and options:
        raise SageLLMError(ErrorCode.INVALID_REQUEST, "give settings or keywords, not both")
    return ControlPlaneService(settings or PlaneSettings.of(**options))
