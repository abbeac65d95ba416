"""The control plane under the names and signatures that SAGE knows: a thin adapter over ``ControlPlaneService``.

What the old one only pretended is refused by name until it is real. Methods that are not coroutines may be called from
any thread once :meth:`ControlPlaneManager.start` has run; the work itself happens on the loop that ran it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal

from sagellm_protocol import ErrorCode, SageLLMError

from .background import Background
from .gpu_manager import GPUResourceManager
from .legacy import book
from .legacy.engines import Engines
from .legacy.errors import BadValue, refuse_other_than
from .legacy.runs import Answer, Runs
from .legacy.translate import requests_of, router_of
from .legacy.views import Views
from .policies import policy_named
from .service import ControlPlaneService
from .settings import PlaneSettings
from .ticket import Hints
from .types import PDSeparationConfig, RequestMetadata, RequestStatus

if TYPE_CHECKING:
    from .autoscaler import AutoscalerConfig


class ControlPlaneManager(Engines, Views):
    """Engines and requests as SAGE handles them.

    Args:
        scheduling_policy: ``adaptive``, ``fifo``, ``priority``, ``slo_aware``, ``cost_optimized``, or one installed.
        routing_strategy: ``load_balanced``, ``round_robin``, ``random``, ``affinity``, or another router's name.
        enable_auto_scaling: Only ``False`` yet.
        enable_monitoring: Whether figures over recent requests are given.
        enable_pd_separation: Send prefill and decode to instances of their own where such are registered. They cannot
            be registered yet (refused by name), so either value serves every request whole.
        pd_config: Only ``None`` yet.
        autoscaler_config: Only ``None`` yet.
        mode: Where engines are started: ``http`` as servers in processes of their own, ``local`` in this process.
        auto_restart: Start engines anew that died, if they were started here.
        max_restart_attempts: How often.
        health_check_interval: Seconds between two looks at an engine.
        health_check_timeout: Seconds an engine has to answer.
        restart_backoff_base: Seconds before the first restart; doubles with each.
        consecutive_failures_threshold: Looks in a row that fail before an engine counts as dead.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a value that cannot be honoured yet, ``INVALID_REQUEST`` for a wrong one.
    """

    def __init__(
        self,
        scheduling_policy: str = "adaptive",
        routing_strategy: str = "load_balanced",
        enable_auto_scaling: bool = False,
        enable_monitoring: bool = True,
        enable_pd_separation: bool = True,
        pd_config: PDSeparationConfig | None = None,
        autoscaler_config: AutoscalerConfig | None = None,
        mode: Literal["http", "local"] = "http",
        auto_restart: bool = True,
        max_restart_attempts: int = 3,
        health_check_interval: float = 10.0,
        health_check_timeout: float = 5.0,
        restart_backoff_base: float = 1.0,
        consecutive_failures_threshold: int = 2,
    ) -> None:
        refuse_other_than({"enable_auto_scaling": False, "pd_config": None, "autoscaler_config": None}, locals())
        if mode not in ("http", "local"):
            raise BadValue(f"mode must be 'http' or 'local' (got {mode!r})", "mode")
        self.scheduling_policy = scheduling_policy
        self.routing_strategy = routing_strategy
        self.enable_monitoring = enable_monitoring
        self.enable_pd_separation = enable_pd_separation
        self.mode = mode
        self.service = ControlPlaneService(
            PlaneSettings(
                policy=scheduling_policy,
                routing=router_of(routing_strategy),
                auto_restart=auto_restart,
                max_restarts=max_restart_attempts,
                poll_interval_s=health_check_interval,
                poll_timeout_s=health_check_timeout,
                restart_backoff_s=restart_backoff_base,
                failures_threshold=consecutive_failures_threshold,
            )
        )
        self._book = book.Book()
        self._gpus = GPUResourceManager()
        self._background = Background()
        self._runs = Runs(self.service, self._background)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started_at: float | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to serve; engines registered before are reached from now on."""
        self._loop = asyncio.get_running_loop()
        self._started_at = time.monotonic()
        await self.service.start()
        for entry in self._book.here().values():
            if entry.member is not None and entry.member.engine_id not in self.service.fleet:
                self.service.crew.expect(entry.member)

    async def stop(self) -> None:
        """Cancel what is in flight and stop the engines that were started here."""
        await self.service.stop()
        for engine_id in self._book.here():
            self._book.retire(engine_id)
        await self._background.cancel()
        self._loop = self._started_at = None

    # --- requests -----------------------------------------------------------------------------------------------------

    async def submit_request(self, request: RequestMetadata) -> str:
        """Take a request in and carry it out in the background; :meth:`get_response` waits for its answer.

        Returns:
            The request's id, as it was given.

        Raises:
            SageLLMError: It is refused: the queue is full, no engine serves the model, a value cannot be honoured.
        """
        hints = Hints(prefer_engine=request.preferred_instance_id, cost_budget=request.cost_budget)
        self._runs.start(request, requests_of(request, self._model_of(request)), hints)
        return request.request_id

    async def get_request_status(self, request_id: str) -> RequestStatus | None:
        """Where a request is; ``None`` once it is forgotten, or if it never was."""
        run = self._runs.get(request_id)
        return run.status if run is not None else None

    async def get_response(self, request_id: str) -> Answer:
        """The answer of a submitted request, once it is there; for embeddings one a batch.

        Raises:
            SageLLMError: As the request ended; ``NOT_FOUND`` for an unknown id.
        """
        run = self._runs.get(request_id)
        if run is None:
            raise SageLLMError(ErrorCode.NOT_FOUND, f"no request {request_id!r} was submitted here", "request_id")
        return await asyncio.shield(run.done)

    async def cancel_request(self, request_id: str) -> bool:
        """End a request, waiting or running. False when none of that id is in flight."""
        return self._runs.cancel(request_id)

    async def on_instance_failure(self, instance_id: str, failed_requests: list[tuple[str, RequestMetadata]]) -> None:
        """Count an engine as dead: what it had is taken elsewhere; of ``failed_requests`` the others begin anew."""
        entry = self._book.here().get(instance_id)
        if entry is not None and entry.member is not None:
            self.service.crew.died(entry.member, "its failure was reported")
        known = self._runs.waiting()
        for request_id, request in failed_requests:
            if request_id not in known:
                await self.submit_request(request)

    def update_policy(self, policy_name: str) -> None:
        """Order the queue by another policy from now on.

        Raises:
            SageLLMError: For an unknown name, listing those there are.
        """
        policy = policy_named(policy_name)
        self._on_loop(lambda: self.service.dispatcher.use(policy))
        self.scheduling_policy = policy_name

    def _model_of(self, request: RequestMetadata) -> str:
        """The model of a request that may leave it open: then the first that an engine of its kind serves."""
        named = request.effective_model_name
        if named is not None:
            return named
        for entry in self._book.here().values():
            if entry.member is not None and entry.instance.can_handle_request_type(request.request_type):
                return entry.member.names[0]
        raise SageLLMError(ErrorCode.UNAVAILABLE, "no engine is registered that could serve this request")
