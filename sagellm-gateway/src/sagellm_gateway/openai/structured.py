"""Tools and output forms as bodies ask for them, read into the contract.

Knows nothing of how an engine constrains its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, ValidationError

from sagellm_protocol import NamedTool, SageLLMError, StructuredOutput, ToolDefinition

from .body import Body, Refused, invalid, known_types, read

_MODES: dict[str, Literal["none", "auto", "required"]] = {"none": "none", "auto": "auto", "required": "required"}


class Function(Body):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=512)
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool = False


class FunctionTool(Body):
    """A tool of a request."""

    type: Literal["function"]
    function: Function

    def definition(self) -> ToolDefinition:
        """As the contract has it."""
        function = self.function
        return ToolDefinition(
            name=function.name,
            description=function.description,
            parameters=function.parameters,
            strict=function.strict,
        )


Tool = Annotated[FunctionTool, known_types("function")]


class ChosenFunction(Body):
    """The name of the function that must be called."""

    name: str = Field(min_length=1, max_length=512)


class FunctionChoice(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction

    refused: ClassVar[Mapping[str, Refused]] = {
        "allowed_tools": Refused((), "list fewer tools"),
        "custom": Refused((), "custom tools are not offered; describe a function"),
    }


class JsonSchemaFormat(Body):
    """A schema under a name."""

    name: str
    schema_: dict[str, JsonValue] = Field(alias="schema", default={})
    description: str | None = None
    strict: bool = False


class ResponseFormat(Body):
    """OpenAI's way to ask for a form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


Format = Annotated[ResponseFormat, known_types("text", "json_object", "json_schema")]


class StructuredOutputs(Body):
    """vLLM's way to ask for a form."""

    json_: JsonValue | None = Field(alias="json", default=None)
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool = False

    refused: ClassVar[Mapping[str, Refused]] = {
        "structural_tag": Refused((), "structural tags are not offered; give a grammar"),
        "disable_fallback": Refused((False,), "there is one structured-output backend"),
        "disable_any_whitespace": Refused((False,), "give a regex or a grammar that says it"),
        "disable_additional_properties": Refused((False,), "say it in the schema"),
        "whitespace_pattern": Refused((), "give a regex or a grammar that says it"),
    }


class FormFields(Body):
    """The fields that ask for a form; at most one may."""

    response_format: Format | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonValue | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def form(self) -> tuple[StructuredOutput | None, str]:
        """The form asked for, and the field that asked.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for two forms, or one that is no form.
        """
        if self.model_fields_set.isdisjoint(FormFields.model_fields):
            return None, "response_format"
        found = [(name, wanted) for name, wanted in self._wanted() if wanted]
        if len(found) > 1:
            raise invalid(found[1][0], f"a request has one form, and {found[0][0]} asks for one too")
        if not found:
            return None, "response_format"
        name, wanted = found[0]
        try:
            return StructuredOutput(**wanted), name
        except ValidationError as error:
            raise invalid(name, SageLLMError.from_validation(error).message) from None

    def _wanted(self) -> list[tuple[str, dict[str, Any]]]:
        return [
            ("response_format", _of_format(self.response_format)),
            ("structured_outputs", _of_outputs(self.structured_outputs)),
            ("guided_json", _given(json_schema=_schema("guided_json", self.guided_json))),
            ("guided_regex", _given(regex=self.guided_regex)),
            ("guided_choice", _given(choice=self.guided_choice)),
            ("guided_grammar", _given(grammar=self.guided_grammar)),
        ]


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _of_format(form: ResponseFormat | None) -> dict[str, Any]:
    if form is None or form.type == "text":
        return {}
    if form.type == "json_object":
        return {"json_object": True}
    if form.json_schema is None:
        raise invalid("response_format.json_schema", "required by type json_schema")
    return {"json_schema": form.json_schema.schema_}


def _of_outputs(form: StructuredOutputs | None) -> dict[str, Any]:
    if form is None:
        return {}
    wanted = _given(
        json_schema=_schema("structured_outputs.json", form.json_),
        regex=form.regex,
        choice=form.choice,
        grammar=form.grammar,
        json_object=form.json_object or None,
    )
    if not wanted:
        raise invalid("structured_outputs", "give one of json, regex, choice, grammar, json_object")
    return wanted


def _schema(name: str, value: JsonValue | None) -> dict[str, JsonValue] | None:
    if value is None or isinstance(value, dict):
        return value
    raise invalid(name, "must be a JSON Schema object")


def chosen_tool(
    choice: JsonValue | None, tools: tuple[ToolDefinition, ...]
) -> Literal["none", "auto", "required"] | NamedTool:
    """Which tools must be called.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a choice that the tools do not allow.
    """
    if choice is None:
        return "auto"
    if not isinstance(choice, str):
        name = read(FunctionChoice, choice, "tool_choice").function.name
        if name not in (names := [tool.name for tool in tools]):
            raise invalid("tool_choice", f"no tool is named {name!r}; tools: {', '.join(names) or 'none were given'}")
        return NamedTool(name=name)
    if choice == "required" and not tools:
        raise invalid("tool_choice", "'required' needs tools")
    if choice in _MODES:
        return _MODES[choice]
    raise invalid("tool_choice", f"takes 'none', 'auto', 'required' or a function (got {choice[:40]!r})")
