"""The manager's engines: registered, started, moved between states, and stopped, with SAGE's names and signatures.

Methods that are not coroutines may be called from any thread once the manager has started; its loop does the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from sagellm_control_plane.background import Background
from sagellm_control_plane.fleet import Attached, Launched, Member
from sagellm_control_plane.launchers.subprocess import SubprocessLauncher
from sagellm_control_plane.remote.server import bind
from sagellm_control_plane.service import ControlPlaneService
from sagellm_control_plane.types import EngineInfo, ExecutionInstance, ExecutionInstanceType, now
from sagellm_protocol import EngineState, ErrorCode, SageLLMError

from . import book
from .book import Book, Entry
from .errors import BadValue, not_yet
from .translate import spec_of
from .views import told

T = TypeVar("T")
GRACE_S = 30.0


class Engines:
    """The half of ``ControlPlaneManager`` that handles engines; the manager sets all that is declared here."""

    service: ControlPlaneService
    mode: str
    _book: Book
    _background: Background
    _loop: asyncio.AbstractEventLoop | None

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
        return told(entry)

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
