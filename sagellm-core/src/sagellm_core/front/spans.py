"""A finished request as spans of OpenTelemetry: the whole, and in it the wait, the prompt and the output.

Attributes follow OpenTelemetry's conventions for generative models, and where these have none, vLLM's names. Knows
nothing of OpenTelemetry itself.
"""

from __future__ import annotations

from sagellm_protocol.interfaces import RequestEnding
from sagellm_protocol.tracing import Attribute, Span

from .job import Job


def span_of(job: Job) -> Span:
    """What became of a job that has ended."""
    request, sampling, times, usage = job.request, job.request.sampling, job.times(), job.usage()
    assert times.queued is not None
    assert times.finished is not None
    assert job.outcome is not None
    attributes: dict[str, Attribute] = {
        "gen_ai.operation.name": "chat" if request.messages is not None else "text_completion",
        "gen_ai.request.model": request.model,
        "gen_ai.request.id": request.trace_id or request.request_id,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.choice.count": sampling.n,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cached_tokens": usage.cached_tokens,
        "gen_ai.latency.e2e": times.finished - times.queued,
    }
    if sampling.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = sampling.max_tokens
    if job.outcome is RequestEnding.COMPLETED:
        attributes["gen_ai.response.finish_reasons"] = job.finish_reasons()
    children = []
    if times.scheduled is not None:
        attributes["gen_ai.latency.time_in_queue"] = times.scheduled - times.queued
        children.append(Span("queue", times.queued, times.scheduled, {}))
    if times.scheduled is not None and times.first_token is not None:
        attributes["gen_ai.latency.time_to_first_token"] = times.first_token - times.queued
        attributes["gen_ai.latency.time_in_model_prefill"] = times.first_token - times.scheduled
        attributes["gen_ai.latency.time_in_model_decode"] = times.finished - times.first_token
        prompt: dict[str, Attribute] = {"gen_ai.usage.input_tokens": usage.prompt_tokens}
        children.append(Span("prefill", times.scheduled, times.first_token, prompt))
        produced: dict[str, Attribute] = {"gen_ai.usage.output_tokens": usage.completion_tokens}
        children.append(Span("decode", times.first_token, times.finished, produced))
    error = None if job.outcome is RequestEnding.COMPLETED else job.outcome.value
    return Span("llm_request", times.queued, times.finished, attributes, tuple(children), error)
