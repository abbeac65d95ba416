"""Requests carried out on servers that speak OpenAI's API: vLLM, SGLang, llama.cpp, our gateway, and others."""

from __future__ import annotations

from typing import Any

from sagellm_control_plane.legacy.asking import tokens_of
from sagellm_control_plane.legacy.errors import BadValue
from sagellm_control_plane.legacy.openai_http import OpenAIHttp
from sagellm_control_plane.types import ExecutionInstance, RequestMetadata, RequestType, SchedulingDecision, now

from .base import Carried, ExecutionCoordinatorBase


class HttpExecutionCoordinator(ExecutionCoordinatorBase):
    """Executes over HTTP; instances are at ``http://host:port``, with ``metadata["api_key"]`` if they want one.

    Args:
        timeout: Longest that an answer may take, in seconds.

    Raises:
        ValueError: For a time-out that is not positive.
    """

    def __init__(self, timeout: int = 300) -> None:
        super().__init__()
        if not timeout > 0:
            raise BadValue(f"timeout must be over 0 (got {timeout!r})", "timeout")
        self.timeout = timeout
        self._http = OpenAIHttp(timeout)

    async def initialize(self) -> None:
        """Be ready to connect; :meth:`execute_request` does it too."""
        await self._http.open()

    async def cleanup(self) -> None:
        """Close connections; what is in flight fails."""
        await self._http.close()

    async def execute_request(
        self, request: RequestMetadata, instance: ExecutionInstance, decision: SchedulingDecision
    ) -> dict[str, Any]:
        """Carry a request out; the server's answer, with ``request_id``, ``instance_id`` and ``latency_ms`` beside it.

        See :meth:`ExecutionCoordinatorBase.execute_request`.
        """
        path, body = _call(request, instance)
        base, key = _base(instance), instance.metadata.get("api_key")
        async with self._carrying(request, instance, decision) as carried:
            if request.request_type is RequestType.EMBEDDING:
                answer = await self._http.post(base + path, body, key)
            else:
                answer = await self._http.stream(base + path, body, carried.token, key)
                request.last_token_time = now()
            _count(carried, answer, request)
        return {**answer, "request_id": request.request_id, "instance_id": instance.instance_id, **_times(request)}

    async def health_check(self, instance: ExecutionInstance) -> bool:
        """Whether its server answers."""
        instance.is_healthy = await self._http.answers(_base(instance), instance.metadata.get("api_key"))
        return instance.is_healthy

    async def get_instance_info(self, instance: ExecutionInstance) -> dict[str, Any] | None:
        """What its server says: ``models`` beside the address; ``None`` if it does not answer."""
        models = await self._http.models(_base(instance), instance.metadata.get("api_key"))
        if models is None:
            return None
        return {
            "instance_id": instance.instance_id,
            "base_url": _base(instance),
            "model_name": instance.model_name,
            "models": models,
            "serves_model": instance.model_name in models,
        }


def _base(instance: ExecutionInstance) -> str:
    host = "127.0.0.1" if instance.host in ("0.0.0.0", "localhost") else instance.host
    return f"http://{host}:{instance.port}"


def _call(request: RequestMetadata, instance: ExecutionInstance) -> tuple[str, dict[str, Any]]:
    model = request.effective_model_name or instance.model_name
    if request.request_type is RequestType.EMBEDDING:
        if not request.embedding_texts:
            raise BadValue(f"request {request.request_id!r} has no embedding_texts", "embedding_texts")
        return "/v1/embeddings", {"model": model, "input": request.embedding_texts}
    if not request.prompt:
        raise BadValue(f"request {request.request_id!r} has no prompt", "prompt")
    body: dict[str, Any] = {"model": model, "temperature": request.temperature, "top_p": request.top_p}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.user_id is not None:
        body["user"] = request.user_id
    if request.request_type is RequestType.LLM_CHAT:
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": request.prompt}]}
    return "/v1/completions", {**body, "prompt": request.prompt}


def _count(carried: Carried, answer: dict[str, Any], request: RequestMetadata) -> None:
    usage = answer.get("usage") or {}
    carried.prompt_tokens = int(usage.get("prompt_tokens") or tokens_of(request))
    carried.output_tokens = int(usage.get("completion_tokens") or 0)


def _times(request: RequestMetadata) -> dict[str, Any]:
    if request.start_time is None or request.end_time is None:
        return {}
    return {"latency_ms": (request.end_time - request.start_time).total_seconds() * 1000}
