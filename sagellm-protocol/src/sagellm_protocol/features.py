"""The names of what a request may depend on, and the refusal of those an engine does not know.

A feature is what an engine might lack. A request uses a feature by setting a field, or names it in ``requires``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from .errors import ErrorCode, SageLLMError
from .requests import EmbedRequest, NamedTool, Request, ScoreRequest

GENERATE = "generate"
EMBED = "embed"
SCORE = "score"
CHAT = "chat"
CHAT_TEMPLATE = "chat_template"
"""A template that comes with the request, which runs only where the operator trusts callers so far."""
REASONING_EFFORT = "reasoning_effort"
TOOLS = "tools"
TOOL_CHOICE = "tool_choice"
"""That some tool, or a certain one, must be called."""
STRUCTURED_OUTPUT = "structured_output"
LOGPROBS = "logprobs"
PROMPT_LOGPROBS = "prompt_logprobs"
LOGIT_BIAS = "logit_bias"
ALLOWED_TOKEN_IDS = "allowed_token_ids"
BAD_WORDS = "bad_words"
ECHO = "echo"
ADAPTER = "adapter"
CACHE_SALT = "cache_salt"
KV_TRANSFER = "kv_transfer"
DIMENSIONS = "dimensions"
BEAM_SEARCH = "beam_search"

ALL = frozenset(
    {
        *(GENERATE, EMBED, SCORE, CHAT, CHAT_TEMPLATE, REASONING_EFFORT, TOOLS, TOOL_CHOICE),
        *(STRUCTURED_OUTPUT, LOGPROBS, PROMPT_LOGPROBS, LOGIT_BIAS),
        *(ALLOWED_TOKEN_IDS, BAD_WORDS, ECHO, ADAPTER, CACHE_SALT, KV_TRANSFER, DIMENSIONS),
        BEAM_SEARCH,
    }
)
"""Every feature this version has a name for."""

# How each feature shows in a request, beside the field that a refusal names.
_IN_REQUEST: tuple[tuple[str, str, Callable[[Request], bool]], ...] = (
    (CHAT, "messages", lambda r: r.messages is not None),
    (CHAT_TEMPLATE, "chat_template", lambda r: r.chat_template is not None),
    (REASONING_EFFORT, "reasoning_effort", lambda r: r.reasoning_effort is not None),
    (TOOLS, "tools", lambda r: bool(r.tools)),
    (TOOL_CHOICE, "tool_choice", lambda r: r.tool_choice == "required" or isinstance(r.tool_choice, NamedTool)),
    (STRUCTURED_OUTPUT, "structured", lambda r: r.structured is not None),
    (LOGPROBS, "sampling.logprobs", lambda r: r.sampling.logprobs is not None),
    (PROMPT_LOGPROBS, "sampling.prompt_logprobs", lambda r: r.sampling.prompt_logprobs is not None),
    (LOGIT_BIAS, "sampling.logit_bias", lambda r: bool(r.sampling.logit_bias)),
    (ALLOWED_TOKEN_IDS, "sampling.allowed_token_ids", lambda r: r.sampling.allowed_token_ids is not None),
    (BAD_WORDS, "sampling.bad_words", lambda r: bool(r.sampling.bad_words)),
    (ECHO, "echo", lambda r: r.echo),
    (BEAM_SEARCH, "sampling.beam_width", lambda r: r.sampling.beam_width is not None),
    (CACHE_SALT, "cache_salt", lambda r: r.cache_salt is not None),
    (KV_TRANSFER, "kv_transfer", lambda r: r.kv_transfer is not None),
)

# What to do about a whole kind of request that a model is not for.
_INSTEAD: Mapping[str, str] = {
    GENERATE: "It makes vectors or scores; to have text written, name a model that generates",
    EMBED: "To have vectors made, name an embedding model, or start this model's engine with a way of pooling, where"
    " the engine has the option (pooling=last or pooling=mean)",
    SCORE: "To have texts scored, name a cross-encoder or an embedding model",
    TOOLS: "Its chat template shows the model no tools; start its engine with one that does (chat_template) and, where"
    " that does not tell, with the form its calls take (tool_parser)",
    TOOL_CHOICE: "The form its calls take cannot be forced on it; leave tool_choice at 'auto'",
}

AnyRequest = Request | EmbedRequest | ScoreRequest


def features_of(request: AnyRequest) -> dict[str, str]:
    """Features the request depends on, each with the field that brings it in."""
    used = dict.fromkeys(request.requires, "requires")
    if request.adapter is not None:
        used[ADAPTER] = "adapter"
    if isinstance(request, Request):
        used[GENERATE] = "model"
        used.update((name, field) for name, field, uses in _IN_REQUEST if uses(request))
    elif isinstance(request, EmbedRequest):
        used[EMBED] = "model"
        if request.dimensions is not None:
            used[DIMENSIONS] = "dimensions"
    else:
        used[SCORE] = "model"
    return used


def refuse_unknown(request: AnyRequest, offered: Collection[str]) -> None:
    """Raise ``UNSUPPORTED`` for the first feature of ``request`` that is not among those ``offered``."""
    for name, field in features_of(request).items():
        if name not in offered:
            instead = f". {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"model {request.model!r} does not offer {name!r} (asked for by {field});"
                f" it offers {', '.join(sorted(offered)) or 'nothing'}{instead}",
                field,
            )
