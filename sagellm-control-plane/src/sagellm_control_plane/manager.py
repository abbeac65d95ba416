"""The control plane under the names and signatures that SAGE knows: a thin adapter over ``ControlPlaneService``.

What the old one only pretended is refused by name until it is real. Methods that are not coroutines may be called from
any thread once :meth:`ControlPlaneManager.start` has run; the work itself happens on the loop that ran it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sagellm_protocol import EngineState, ErrorCode, SageLLMError

from .background import Background
from .fleet import Attached, Launched, Member
from .launchers.subprocess import SubprocessLauncher
from .legacy import book, measure
from .legacy.book import Entry
from .legacy.errors import BadValue, not_yet, refuse_other_than
from .legacy.runs import Answer, Runs
from .legacy.translate import policy_of, requests_of, router_of, spec_of
from .policies import policy_named
from .remote.server import bind
from .service import ControlPlaneService
from .settings import PlaneSettings
from .ticket import Hints
from .types import (
    EngineInfo,
    ExecutionInstance,
    ExecutionInstanceType,
    InstanceMetrics,
    PDSeparationConfig,
    PerformanceMetrics,
    RequestMetadata,
    RequestStatus,
    SchedulingMetrics,
    now,
)

if TYPE_CHECKING:
    AutoscalerConfig = object
    """Of the autoscaler, which is still to come: nothing but ``None`` is taken."""

log = logging.getLogger(__name__)
T = TypeVar("T")
GRACE_S = 30.0


class ControlPlaneManager:
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
                policy=policy_of(scheduling_policy),
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

    # --- engines: registering -----------------------------------------------------------------------------------------

    def register_instance(self, instance: ExecutionInstance) -> None:
        """Serve through an engine server that runs at ``instance.host`` and ``.port``, as soon as it answers.

        Raises:
            ValueError: The id is registered.
            SageLLMError: ``UNSUPPORTED`` for an instance of prefill or decode alone.
        """
        embeds = instance.instance_type is ExecutionInstanceType.EMBEDDING
        book.type_of("embedding" if embeds else "llm", instance.instance_type)
        entry = Entry(instance, "embedding" if embeds else "llm", instance.metadata)
        self._on_loop(lambda: self._enter(entry))

    def unregister_instance(self, instance_id: str) -> None:
        """As :meth:`unregister_engine`."""
        self.unregister_engine(instance_id)

    def register_engine(
        self,
        engine_id: str,
        model_id: str,
        host: str,
        port: int,
        engine_kind: str = "llm",
        metadata: dict[str, Any] | None = None,
        _skip_save: bool = False,
    ) -> EngineInfo:
        """Serve through an engine server that runs elsewhere, as soon as it answers; it is ``STARTING`` until then.

        Args:
            engine_id: Its id here.
            model_id: The name requests use until the engine itself has told its names.
            host: Its host; 0.0.0.0 means this machine.
            port: Its port.
            engine_kind: ``llm`` or ``embedding``.
            metadata: Kept; ``api_key`` in it is what the server is asked with.
            _skip_save: Has no effect: the registry is in memory.

        Raises:
            ValueError: The id is registered, or a value cannot be.
        """
        instance = ExecutionInstance(
            instance_id=engine_id,
            host="localhost" if host == "0.0.0.0" else host,
            port=port,
            model_name=model_id,
            instance_type=book.type_of(engine_kind),
            metadata=metadata or {},
        )
        entry = Entry(instance, engine_kind, metadata or {})
        self._on_loop(lambda: self._enter(entry))
        return entry.info()

    def unregister_engine(self, engine_id: str) -> EngineInfo | None:
        """Let an engine go, and forget it; ``None`` for an unknown one."""
        entry = self._book.get(engine_id)
        if entry is None:
            return None
        info = entry.info()
        self._on_loop(lambda: self._let_go(engine_id))
        self._book.forget(engine_id)
        return info

    def get_engine_info(self, engine_id: str) -> EngineInfo | None:
        """An engine now; ``None`` for an unknown one."""
        entry = self._book.get(engine_id)
        return entry.info() if entry is not None else None

    def get_engine_state(self, engine_id: str) -> EngineState | None:
        """An engine's state; ``None`` for an unknown one."""
        entry = self._book.get(engine_id)
        return entry.state if entry is not None else None

    def list_registered_engines(self, state_filter: EngineState | None = None) -> list[EngineInfo]:
        """Engines, of one state if asked; stopped ones until they are pruned."""
        infos = [entry.info() for entry in self._book.all()]
        return [info for info in infos if state_filter is None or info.state is state_filter]

    # --- engines: what others report of them --------------------------------------------------------------------------

    def update_engine_state(self, engine_id: str, new_state: EngineState, *, reset_failures: bool = False) -> bool:
        """Move an engine to another state. False for an unknown engine, or a move that its life does not allow."""
        entry = self._book.get(engine_id)
        if entry is None or entry.member is None:
            return False
        member = entry.member
        return self._on_loop(lambda: self._move(member, EngineState(new_state), reset_failures))

    def record_engine_heartbeat(self, engine_id: str) -> bool:
        """Note a sign of life; it takes back failures. False for an unknown engine."""
        entry = self._book.get(engine_id)
        if entry is None or entry.member is None:
            return False
        entry.heard_at, entry.member.failures = now(), 0
        return True

    def record_engine_failure(self, engine_id: str) -> int:
        """Note a failure; enough in a row make the engine dead. Returns how many there are now."""
        entry = self._book.get(engine_id)
        if entry is None or entry.member is None:
            return 0
        member = entry.member
        self._on_loop(lambda: self.service.crew.failed(member, "a failure was reported"))
        return member.failures

    def update_engine_active_requests(self, engine_id: str, active_requests: int) -> bool:
        """Note how many requests are active there by another's count. False for an unknown engine."""
        entry = self._book.get(engine_id)
        if entry is None or active_requests < 0:
            return False
        entry.reported_active = active_requests
        return True

    # --- engines: going -----------------------------------------------------------------------------------------------

    def start_engine_drain(self, engine_id: str) -> bool:
        """Send it nothing new. False unless it was ready."""
        entry = self._book.get(engine_id)
        if entry is None or entry.member is None or entry.state is not EngineState.READY:
            return False
        member = entry.member
        self._on_loop(lambda: self.service.crew.begin_drain(member))
        return True

    def check_engine_drain_complete(self, engine_id: str) -> bool:
        """Whether it drains and has nothing active any more."""
        entry = self._book.get(engine_id)
        return entry is not None and entry.state is EngineState.DRAINING and entry.active == 0

    async def stop_engine_gracefully(self, engine_id: str, timeout: float = GRACE_S) -> bool:
        """Drain for at most ``timeout`` seconds, then stop. False for one that is not here, or had to be cut short."""
        entry = self._book.here().get(engine_id)
        if entry is None or entry.member is None:
            return False
        member = entry.member
        with contextlib.suppress(asyncio.TimeoutError, SageLLMError):
            await asyncio.wait_for(self.service.drain_engine(engine_id), timeout)
        drained = not member.tickets
        with contextlib.suppress(SageLLMError):
            await self.service.stop_engine(engine_id)
        self._book.retire(engine_id)
        return drained

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

    # --- figures ------------------------------------------------------------------------------------------------------

    def get_autoscaler_status(self) -> dict[str, Any]:
        """That there is no autoscaler yet."""
        return {"enabled": False, "running": False}

    def get_metrics(self) -> PerformanceMetrics:
        """Figures of the whole plane."""
        return measure.performance(self.service, monitored=self.enable_monitoring)

    def get_scheduling_metrics(self) -> SchedulingMetrics:
        """Figures of decisions and the queue."""
        return measure.scheduling(self.service, self.scheduling_policy, monitored=self.enable_monitoring)

    def get_instance_metrics_detailed(self, instance_id: str) -> InstanceMetrics | None:
        """Figures of one engine; ``None`` for an unknown one."""
        entry = self._book.here().get(instance_id)
        return measure.instance(self.service, entry, monitored=self.enable_monitoring) if entry is not None else None

    def get_all_instance_metrics(self) -> dict[str, InstanceMetrics]:
        """Figures of each engine."""
        return {
            engine_id: measure.instance(self.service, entry, monitored=self.enable_monitoring)
            for engine_id, entry in self._book.here().items()
        }

    def get_instances(self) -> list[ExecutionInstance]:
        """Engines as instances."""
        return [entry.shown() for entry in self._book.here().values()]

    def get_instance_metrics(self, instance_id: str) -> dict[str, Any] | None:
        """Figures of one engine as a mapping; ``None`` for an unknown one."""
        metrics = self.get_instance_metrics_detailed(instance_id)
        return asdict(metrics) if metrics is not None else None

    def update_policy(self, policy_name: str) -> None:
        """Order the queue by another policy from now on.

        Raises:
            SageLLMError: For an unknown name, listing those there are.
        """
        policy = policy_named(policy_of(policy_name))
        self._on_loop(lambda: self.service.dispatcher.use(policy))
        self.scheduling_policy = policy_name

    def get_status(self) -> dict[str, Any]:
        """The plane now."""
        status = self.service.status_now()
        return {
            "running": self._loop is not None,
            "ready": status.ready,
            "reason": status.reason,
            "uptime_seconds": None if self._started_at is None else time.monotonic() - self._started_at,
            "mode": self.mode,
            "scheduling_policy": self.scheduling_policy,
            "scheduling_reason": self.service.dispatcher.reason(),
            "routing_strategy": self.routing_strategy,
            "auto_scaling_enabled": False,
            "monitoring_enabled": self.enable_monitoring,
            "pd_separation_enabled": self.enable_pd_separation,
            "pd_separation_active": False,
            "registered_instances": len(self._book.here()),
            "available_instances": sum(record.info.state is EngineState.READY for record in status.engines),
            "queued_requests": status.queued,
            "active_requests": status.in_flight - status.queued,
            "accepted_requests": status.accepted,
            "ended_requests": {ending.value: count for ending, count in status.ended.items()},
            "refused_requests": status.refused_early,
        }

    # --- engines: starting --------------------------------------------------------------------------------------------

    def request_engine_startup(
        self,
        model_id: str,
        *,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        port: int | None = None,
        instance_host: str = "localhost",
        instance_type: ExecutionInstanceType = ExecutionInstanceType.GENERAL,
        max_concurrent_requests: int = 256,
        extra_spawn_args: list[str] | None = None,
        required_memory_gb: float | None = None,
        engine_label: str | None = None,
        metadata: dict[str, Any] | None = None,
        engine_kind: str = "llm",
        use_gpu: bool | None = None,
    ) -> dict[str, Any]:
        """Begin to start an engine; it is ``STARTING`` until it serves, and ``ERROR`` with the reason if it does not.

        Raises:
            ValueError: A value cannot be.
            SageLLMError: ``UNSUPPORTED`` for one that cannot be honoured yet.
        """
        spec = spec_of(
            model_id,
            tensor_parallel_size=tensor_parallel_size,
            pipeline_parallel_size=pipeline_parallel_size,
            extra_spawn_args=extra_spawn_args,
            use_gpu=use_gpu,
        )
        kind = book.type_of(engine_kind, instance_type)
        if required_memory_gb is not None:
            raise not_yet("required_memory_gb", required_memory_gb, "give --kv-cache-memory in extra_spawn_args")
        if max_concurrent_requests < 1:
            raise BadValue(f"max_concurrent_requests must be 1 or more (got {max_concurrent_requests})")
        if self.mode == "local" and port is not None:
            raise not_yet("port", port, "an engine of mode='local' has none")
        instance = ExecutionInstance(
            instance_id=f"engine-{uuid.uuid4().hex[:12]}",
            host=instance_host,
            port=0 if self.mode == "local" else port or _free_port(instance_host),
            model_name=model_id,
            tensor_parallel_size=tensor_parallel_size,
            pipeline_parallel_size=pipeline_parallel_size,
            instance_type=kind,
            gpu_count=tensor_parallel_size * pipeline_parallel_size if use_gpu else 0,
            max_concurrent_requests=max_concurrent_requests,
            metadata=metadata or {},
        )
        through = SubprocessLauncher(instance.host, instance.port) if self.mode == "http" else None
        origin = Launched("local" if through is None else "subprocess", spec, through)
        entry = Entry(instance, engine_kind, metadata or {}, engine_label)
        entry.member = Member(instance.instance_id, origin, spec.names, most_sequences=max_concurrent_requests)
        self._on_loop(lambda: self._enter(entry))
        return self._told(entry)

    def request_engine_shutdown(self, engine_id: str) -> dict[str, Any]:
        """Stop an engine. Nothing is sent to it any more when this returns.

        Called from the plane's own loop it does not wait for what the engine holds to be released; ``released`` tells.
        """
        if engine_id not in self._book.here():
            return {"engine_id": engine_id, "stopped": False, "status": "FAILED"}
        released = self._on_loop(lambda: self._let_go(engine_id))
        done = not self._on_own_loop()
        if done and self._loop is not None:
            asyncio.run_coroutine_threadsafe(_finish(released), self._loop).result()
        return {"engine_id": engine_id, "stopped": True, "status": "STOPPED", "released": done}

    def start_finetune_engine(
        self,
        model_id: str,
        dataset_path: str,
        output_dir: str,
        *,
        lora_rank: int = 8,
        lora_alpha: int = 16,
        learning_rate: float = 5e-05,
        epochs: int = 3,
        batch_size: int = 4,
        gradient_accumulation_steps: int = 4,
        max_seq_length: int = 2048,
        use_flash_attention: bool = True,
        quantization_bits: int | None = 4,
        auto_download: bool = True,
        engine_label: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Not there yet.

        Raises:
            SageLLMError: ``UNSUPPORTED``, always.
        """
        raise SageLLMError(
            ErrorCode.UNSUPPORTED, f"start_finetune_engine({model_id!r}): fine-tuning is not supported yet"
        )

    def prune_stopped_engines(self) -> int:
        """Forget stopped engines; how many they were."""
        return self._book.prune()

    # --- the cluster --------------------------------------------------------------------------------------------------

    def get_cluster_status(self) -> dict[str, Any]:
        """The plane and its engines. ``gpu`` and ``resource_reservations`` are empty: devices are not managed yet."""
        return {
            "control_plane": self.get_status(),
            "gpu": [],
            "engines": [self._told(entry) for entry in self._book.all()],
            "managed_instances": [book.summary(instance) for instance in self.get_instances()],
            "resource_reservations": {},
        }

    def get_registered_backends(self) -> dict[str, Any]:
        """Engines by what they are for."""
        instances = self.get_instances()
        llm = [book.backend(each) for each in instances if each.instance_type is not ExecutionInstanceType.EMBEDDING]
        both = (ExecutionInstanceType.EMBEDDING, ExecutionInstanceType.LLM_EMBEDDING)
        embedding = [book.backend(each) for each in instances if each.instance_type in both]
        return {
            "llm_backends": llm,
            "embedding_backends": embedding,
            "total_llm_backends": len(llm),
            "total_embedding_backends": len(embedding),
            "healthy_llm_backends": sum(each["is_healthy"] for each in llm),
            "healthy_embedding_backends": sum(each["is_healthy"] for each in embedding),
            "timestamp": now().isoformat(),
        }

    def get_engine_health_status(self) -> dict[str, Any]:
        """Restarts and failures of each engine."""
        settings = self.service.settings
        return {
            "auto_restart_enabled": settings.auto_restart,
            "max_restart_attempts": settings.max_restarts,
            "health_check_interval": settings.poll_interval_s,
            "consecutive_failures_threshold": settings.failures_threshold,
            "engines": {
                engine_id: {
                    "consecutive_failures": entry.member.failures,
                    "restart_count": entry.member.restarts,
                    "last_restart_time": entry.member.restarted_unix,
                    "can_restart": self.service.crew.may_restart(entry.member),
                }
                for engine_id, entry in self._book.here().items()
                if entry.member is not None
            },
        }

    # --- within -------------------------------------------------------------------------------------------------------

    def _on_own_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _on_loop(self, act: Callable[[], T]) -> T:
        """Call ``act`` where the plane lives; directly while it does not run."""
        if self._loop is None or self._on_own_loop():
            return act()

        async def there() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result()

    def _enter(self, entry: Entry) -> None:
        instance = entry.instance
        if entry.member is None:
            url = f"http://{instance.host}:{instance.port}"
            origin = Attached(url, entry.metadata.get("api_key"))
            entry.member = Member(
                instance.instance_id,
                origin,
                (instance.model_name,),
                most_sequences=instance.max_concurrent_requests,
            )
        self._book.add(entry)
        if self._loop is not None:
            self.service.crew.expect(entry.member)

    def _let_go(self, engine_id: str) -> asyncio.Task[None] | None:
        """Stop an engine in the background; nothing is sent there any more when this returns."""
        self._book.retire(engine_id)
        if self._loop is None or engine_id not in self.service.fleet:
            return None
        return self._background.spawn(self.service.crew.leave(engine_id), f"stop {engine_id}")

    def _move(self, member: Member, state: EngineState, reset_failures: bool) -> bool:
        crew = self.service.crew
        if reset_failures:
            member.failures = 0
        if state is member.state:
            return True
        if state is EngineState.DRAINING and member.state is EngineState.READY:
            crew.begin_drain(member)
        elif state is EngineState.READY and member.state is EngineState.DRAINING:
            member.unwanted = False
            member.become(EngineState.READY)
            self.service.dispatcher.fleet_changed()
        elif state is EngineState.ERROR:
            crew.died(member, "it was declared dead")
        elif state is EngineState.STOPPED:
            self._let_go(member.engine_id)
        else:
            return False
        return True

    def _model_of(self, request: RequestMetadata) -> str:
        """The model of a request that may leave it open: then the first that an engine of its kind serves."""
        named = request.effective_model_name
        if named is not None:
            return named
        for entry in self._book.here().values():
            if entry.member is not None and entry.instance.can_handle_request_type(request.request_type):
                return entry.member.names[0]
        raise SageLLMError(ErrorCode.UNAVAILABLE, "no engine is registered that could serve this request")

    def _told(self, entry: Entry) -> dict[str, Any]:
        """An engine as those who start and list engines read it."""
        instance, member = entry.instance, entry.member
        told: dict[str, Any] = {
            "engine_id": instance.instance_id,
            "instance_id": instance.instance_id,
            "model_id": instance.model_name,
            "host": instance.host,
            "port": instance.port or None,
            "gpu_ids": [],
            "tensor_parallel_size": instance.tensor_parallel_size,
            "pipeline_parallel_size": instance.pipeline_parallel_size,
            "memory_per_gpu_gb": None,
            "engine_label": entry.label,
            "engine_kind": entry.engine_kind,
            "status": entry.state.value,
            "uptime_seconds": time.monotonic() - entry.born,
        }
        pid = getattr(member.handle, "pid", None) if member is not None else None
        error = member.info.error if member is not None else None
        return {**told, **({"pid": pid} if pid else {}), **({"error": error} if error else {})}


async def _finish(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        await asyncio.wait([task])


def _free_port(host: str) -> int:
    """A port that was free a moment ago; should another take it meanwhile, the start fails and says so."""
    listener = bind(host, 0)
    try:
        return int(listener.getsockname()[1])
    finally:
        listener.close()
