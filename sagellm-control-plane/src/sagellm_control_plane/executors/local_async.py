"""Requests carried out on engines of this process, which are started when they are first needed."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

from sagellm_control_plane.launchers.local import LocalHandle, LocalLauncher
from sagellm_control_plane.legacy.translate import requests_of
from sagellm_control_plane.types import ExecutionInstance, RequestMetadata, RequestType, SchedulingDecision, now
from sagellm_protocol import (
    DeltaEvent,
    EmbedRequest,
    EngineSpec,
    EngineState,
    ErrorCode,
    Request,
    Response,
    ResponseBuilder,
    SageLLMError,
)
from sagellm_protocol.interfaces import Engine

from .base import Carried, ExecutionCoordinatorBase

STOP_S = 30.0


class LocalAsyncExecutionCoordinator(ExecutionCoordinatorBase):
    """Engines in this process, one an instance.

    An instance says in its metadata which engine it wants (``engine``, else our own) and that engine's ``options``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._launcher = LocalLauncher()
        self._starts: dict[str, asyncio.Task[LocalHandle]] = {}

    def initialize_instance_engine(self, instance: ExecutionInstance) -> None:
        """Begin to start an instance's engine; :meth:`get_engine` waits for it.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` when no event loop runs.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                "initialize_instance_engine starts an engine on the running event loop, and none runs;"
                " call it from a coroutine, or leave it to execute_request",
            ) from None
        if instance.instance_id not in self._starts:
            start = self._launcher.start(_spec(instance), instance.instance_id)
            task = loop.create_task(start, name=f"start {instance.instance_id}")
            # A start that nobody waits for is told by the next who asks.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._starts[instance.instance_id] = task

    async def get_engine(self, instance_id: str) -> Any | None:
        """An instance's engine, started if it was not; ``None`` for an unknown instance.

        Raises:
            SageLLMError: It does not start; the next call tries again.
        """
        instance = self.instances.get(instance_id)
        return None if instance is None else await self._engine(instance)

    async def shutdown_engine(self, instance_id: str) -> None:
        """Stop an instance's engine; it is started again when it is next needed."""
        task = self._starts.pop(instance_id, None)
        if task is None:
            return
        if not task.done():
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await task.result().stop()

    async def cleanup(self) -> None:
        """Stop all engines."""
        await asyncio.gather(*(self.shutdown_engine(instance_id) for instance_id in list(self._starts)))

    async def remove_instance_gracefully(self, instance_id: str, max_wait_sec: int = 300) -> None:
        """As :meth:`ExecutionCoordinatorBase.remove_instance_gracefully`; its engine is stopped."""
        await super().remove_instance_gracefully(instance_id, max_wait_sec)
        await self.shutdown_engine(instance_id)

    async def execute_request(
        self, request: RequestMetadata, instance: ExecutionInstance, decision: SchedulingDecision
    ) -> dict[str, Any]:
        """Carry a request out; see :meth:`ExecutionCoordinatorBase.execute_request`."""
        asked = requests_of(request, request.effective_model_name or instance.model_name)
        async with self._carrying(request, instance, decision) as carried:
            engine = await self._engine(instance)
            if isinstance(asked[0], Request):
                answer = _completion(await _generated(engine, asked[0], carried), request)
                request.last_token_time = now()
            else:
                answer = await _embedded(engine, [one for one in asked if isinstance(one, EmbedRequest)], carried)
        return {**answer, "request_id": request.request_id, "instance_id": instance.instance_id}

    async def health_check(self, instance: ExecutionInstance) -> bool:
        """Whether its engine is ready; one that was not started yet is as well as can be."""
        task = self._starts.get(instance.instance_id)
        if task is None or not task.done():
            return instance.is_healthy
        started = not task.cancelled() and task.exception() is None
        instance.is_healthy = started and await task.result().status() in (EngineState.READY, EngineState.DRAINING)
        return instance.is_healthy

    async def get_instance_info(self, instance: ExecutionInstance) -> dict[str, Any] | None:
        """What its engine says of itself; ``None`` while it has none."""
        task = self._starts.get(instance.instance_id)
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        info: dict[str, Any] = task.result().engine.info.model_dump(mode="json")
        return info

    async def _engine(self, instance: ExecutionInstance) -> Engine:
        self.initialize_instance_engine(instance)
        task = self._starts[instance.instance_id]
        try:
            handle = await asyncio.shield(task)
        except SageLLMError:
            self._starts.pop(instance.instance_id, None)
            raise
        return handle.engine


def _spec(instance: ExecutionInstance) -> EngineSpec:
    named = {"engine": instance.metadata["engine"]} if "engine" in instance.metadata else {}
    return EngineSpec(
        model=instance.model_name,
        tensor_parallel=instance.tensor_parallel_size,
        pipeline_parallel=instance.pipeline_parallel_size,
        options=instance.metadata.get("options", {}),
        **named,
    )


async def _generated(engine: Engine, request: Request, carried: Carried) -> Response:
    builder = ResponseBuilder(request.model)
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            builder.add(event)
            if isinstance(event, DeltaEvent):
                carried.token()
    response = builder.response()
    carried.prompt_tokens = response.usage.prompt_tokens
    carried.output_tokens = response.usage.completion_tokens
    return response


def _completion(response: Response, request: RequestMetadata) -> dict[str, Any]:
    chat = request.request_type is RequestType.LLM_CHAT
    choices = [
        {
            "index": index,
            **({"message": {"role": "assistant", "content": output.text}} if chat else {"text": output.text}),
            "finish_reason": output.finish_reason.value,
        }
        for index, output in enumerate(response.outputs)
    ]
    return {
        "object": "chat.completion" if chat else "text_completion",
        "id": response.request_id,
        "created": int(time.time()),
        "model": response.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": response.usage.prompt_tokens,
            "completion_tokens": response.usage.completion_tokens,
            "total_tokens": response.usage.prompt_tokens + response.usage.completion_tokens,
        },
    }


async def _embedded(engine: Engine, requests: list[EmbedRequest], carried: Carried) -> dict[str, Any]:
    vectors: list[Any] = []
    for request in requests:
        response = await engine.embed(request)
        vectors.extend(response.vectors)
        carried.prompt_tokens += response.usage.prompt_tokens
    usage = {"prompt_tokens": carried.prompt_tokens, "total_tokens": carried.prompt_tokens}
    data = [{"object": "embedding", "index": i, "embedding": list(vector)} for i, vector in enumerate(vectors)]
    return {"object": "list", "model": requests[0].model, "data": data, "usage": usage}
