"""The body of ``/v1/chat/completions``, read into a request of the contract.

Knows nothing of how answers look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, JsonValue, ValidationError

from sagellm_gateway.errors import public
from sagellm_protocol import Request, SageLLMError

from .body import MODEL_ALIAS, Refused, invalid
from .messages import Turn
from .sampling import REFUSED, SamplingFields
from .structured import FormFields, Tool, chosen_tool


def _served(name: str) -> str:
    if not name or len(name) > 512:
        raise ValueError("must have 1 to 512 characters")
    return name


ModelName = Annotated[str, AfterValidator(_served)]


class ChatBody(SamplingFields, FormFields):
    """Every parameter of OpenAI's API and vLLM's that is honoured; the others stand in ``refused``."""

    model: ModelName = MODEL_ALIAS
    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = None
    """OpenAI's newer name of ``max_tokens``."""
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: JsonValue | None = None
    parallel_tool_calls: bool = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    """A template in place of the model's; engines refuse it unless their operator allows it."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    reasoning_effort: str | None = None
    """How much to reason; engines whose template does not read it refuse it."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **REFUSED,
        "audio": Refused((), "models here write text alone"),
        "modalities": Refused((["text"],), "models here write text alone"),
        "function_call": Refused(("none",), "was replaced by tool_choice"),
        "functions": Refused(([],), "was replaced by tools"),
        "moderation": Refused((), "answers are not moderated here"),
        "prediction": Refused((), "predicted outputs are not offered"),
        "verbosity": Refused(("medium",), "say in the messages how long an answer should be"),
        "web_search_options": Refused((), "nothing is searched here"),
        "best_of": Refused((1,), "ask for n choices and pick one"),
        "echo": Refused((False,), "belongs to /v1/completions"),
        "include_reasoning": Refused((True,), "reasoning stands apart, in reasoning_content"),
        "documents": Refused(([],), "put them in the messages"),
    }

    def request(self, model: str, request_id: str, trace_id: str) -> Request:
        """As the contract has it.

        Args:
            model: What ``self.model`` stands for.
            request_id: Minted for this request.
            trace_id: Names the request in logs of every hop.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` in the API's names.
        """
        self.check_stream()
        tools = tuple(tool.definition() for tool in self.tools)
        structured, _ = self.form()
        generate = not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt
        if generate and self.continue_final_message:
            raise invalid("continue_final_message", "needs add_generation_prompt=false")
        try:
            return Request(
                request_id=request_id,
                trace_id=trace_id,
                model=model,
                messages=tuple(turn.message(f"messages.{index}") for index, turn in enumerate(self.messages)),
                # Templates write the special tokens themselves.
                add_special_tokens=bool(self.add_special_tokens),
                add_generation_prompt=generate,
                continue_final_message=self.continue_final_message,
                chat_template=self.chat_template,
                chat_template_kwargs=self.chat_template_kwargs,
                reasoning_effort=self.reasoning_effort,
                tools=tools,
                tool_choice=chosen_tool(self.tool_choice, tools),
                parallel_tool_calls=self.parallel_tool_calls,
                structured=structured,
                sampling=self.sampling(max_tokens=self._max_tokens(), logprobs=self._logprobs()),
                return_token_ids=self.return_token_ids,
                stream=self.stream,
                **self.routing(),
            )
        except ValidationError as error:
            raise public(SageLLMError.from_validation(error), self.names()) from None
        except SageLLMError as error:
            raise public(error, self.names()) from None

    def names(self) -> dict[str, str]:
        """API names of the contract's fields that this body calls otherwise."""
        names = {
            "structured": self.form()[1],
            "logprobs": "logprobs" if self.top_logprobs is None else "top_logprobs",
            "beam_width": "n",
        }
        if self.max_tokens is None and self.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
        return names

    def _max_tokens(self) -> int | None:
        newer, older = self.max_completion_tokens, self.max_tokens
        if newer is not None and older is not None and newer != older:
            raise invalid("max_completion_tokens", f"is {newer} and max_tokens, its older name, is {older}; give one")
        most = older if newer is None else newer
        if most == 0:
            raise invalid("max_tokens" if newer is None else "max_completion_tokens", "must be at least 1 (got 0)")
        return most

    def _logprobs(self) -> int | None:
        if not self.logprobs:
            if self.top_logprobs:
                raise invalid("top_logprobs", "needs logprobs=true")
            return None
        return self.top_logprobs or 0
