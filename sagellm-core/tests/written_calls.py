"""Calls as each family's own template writes them, by the names of their parsers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

Calls = Sequence[tuple[str, dict[str, Any]]]


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _object(key: str) -> Callable[[tuple[str, dict[str, Any]]], str]:
    return lambda call: dumps({"name": call[0], key: call[1]})


def _deepseek(calls: Calls) -> str:
    told = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{dumps(given)}\n```<｜tool▁call▁end｜>"
        for name, given in calls
    )
    return f"<｜tool▁calls▁begin｜>{told}<｜tool▁calls▁end｜>"


def _deepseek_31(calls: Calls) -> str:
    told = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{dumps(given)}<｜tool▁call▁end｜>" for name, given in calls
    )
    return f"<｜tool▁calls▁begin｜>{told}<｜tool▁calls▁end｜>"


def _harmony(calls: Calls) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dumps(given)}<|call|>"
        for name, given in calls
    )


def _pythonic(calls: Calls) -> str:
    told = (f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls)
    return f"[{', '.join(told)}]"


def _kimi(calls: Calls) -> str:
    told = "".join(
        f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{dumps(given)}<|tool_call_end|>"
        for index, (name, given) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{told}<|tool_calls_section_end|>"


def plain(value: Any) -> str:
    """As these families' templates write a value: text as it is, all else as JSON."""
    return value if isinstance(value, str) else dumps(value)


def _qwen3_coder(calls: Calls) -> str:
    def one(name: str, given: dict[str, Any]) -> str:
        told = "".join(f"<parameter={key}>\n{plain(value)}\n</parameter>\n" for key, value in given.items())
        return f"<tool_call>\n<function={name}>\n{told}</function>\n</tool_call>"

    return "\n".join(one(*call) for call in calls)


def _glm(calls: Calls, line: str = "\n") -> str:
    def one(name: str, given: dict[str, Any]) -> str:
        told = "".join(
            f"<arg_key>{key}</arg_key>{line}<arg_value>{plain(value)}</arg_value>{line}" for key, value in given.items()
        )
        return f"<tool_call>{name}{line}{told}</tool_call>"

    return line.join(one(*call) for call in calls)


def _minimax(calls: Calls) -> str:
    def one(name: str, given: dict[str, Any]) -> str:
        told = "".join(f'<parameter name="{key}">{plain(value)}</parameter>\n' for key, value in given.items())
        return f'<invoke name="{name}">\n{told}</invoke>\n'

    return f"<minimax:tool_call>\n{''.join(one(*call) for call in calls)}</minimax:tool_call>"


def _seed_oss(calls: Calls) -> str:
    def one(name: str, given: dict[str, Any]) -> str:
        told = "".join(f"<parameter={key}>{plain(value)}</parameter>\n" for key, value in given.items())
        return f"<seed:tool_call>\n<function={name}>\n{told}</function>\n</seed:tool_call>"

    return "\n".join(one(*call) for call in calls)


WRITERS: dict[str, tuple[str, Callable[[Calls], str]]] = {
    "hermes": (
        "hermes",
        lambda calls: "\n".join(f"<tool_call>\n{_object('arguments')(call)}\n</tool_call>" for call in calls),
    ),
    "hermes, arguments first": (
        "hermes",
        lambda calls: "".join(
            f"<tool_call>{dumps({'arguments': given, 'name': name})}</tool_call>" for name, given in calls
        ),
    ),
    "llama3_json": ("llama3_json", lambda calls: "; ".join(map(_object("parameters"), calls))),
    "llama3_json, tagged": (
        "llama3_json",
        lambda calls: "<|python_tag|>" + "\n".join(map(_object("parameters"), calls)),
    ),
    "pythonic": ("pythonic", _pythonic),
    "pythonic, tagged": ("pythonic", lambda calls: f"<|python_start|>{_pythonic(calls)}<|python_end|>"),
    "mistral": (
        "mistral",
        lambda calls: f"[TOOL_CALLS]{dumps([{'name': name, 'arguments': given} for name, given in calls])}",
    ),
    "mistral, by name": (
        "mistral",
        lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{dumps(given)}" for name, given in calls),
    ),
    "deepseek": ("deepseek", _deepseek),
    "deepseek 3.1": ("deepseek_v31", _deepseek_31),
    "kimi": ("kimi", _kimi),
    "granite": (
        "granite",
        lambda calls: f"<|tool_call|>{dumps([{'name': name, 'arguments': given} for name, given in calls])}",
    ),
    "qwen3_coder": ("qwen3_coder", _qwen3_coder),
    "glm": ("glm", _glm),
    "glm, without line breaks": ("glm", lambda calls: _glm(calls, "")),
    "minimax": ("minimax", _minimax),
    "seed_oss": ("seed_oss", _seed_oss),
    "harmony": ("harmony", _harmony),
    "json": ("json", lambda calls: f"```json\n{dumps([{'name': n, 'arguments': a} for n, a in calls])}\n```"),
    "json, as OpenAI has it": (
        "json",
        lambda calls: "\n".join(
            dumps({"type": "function", "id": "x", "function": {"name": n, "arguments": dumps(a)}}) for n, a in calls
        ),
    ),
}


def _first(name: str) -> Callable[[Calls], str]:
    return WRITERS[name][1]


def _bare(calls: Calls) -> str:
    told = ", ".join(map(_object("arguments"), calls))
    return told if len(calls) == 1 else f"[{told}]"


def _pythonic_as_json(calls: Calls) -> str:
    def one(value: Any) -> str:
        return repr(value) if isinstance(value, bool) else dumps(value)

    told = (f"{name}({', '.join(f'{key}={one(value)}' for key, value in given.items())})" for name, given in calls)
    return f"[{', '.join(told)}]"


FORCED: dict[str, Callable[[Calls], str]] = {
    **{name: _first(name) for name, _ in WRITERS.values() if name in WRITERS},
    "deepseek_v31": _deepseek_31,
    "harmony": lambda calls: _harmony(calls).removesuffix("<|call|>"),
    "json": _bare,
    "pythonic": _pythonic_as_json,
}
"""As grammars of forced calls have them: of several ways to write a call, one."""
