"""Chat templates through the whole stack: whose template runs, and what reaches it from an HTTP request.

A template can refuse in words of its own, so that an answer of 400 shows what it was given. The model is a random one
whose tokens are characters: the length of a prompt is the length of its text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import Server, start, stop

CHARACTERS = ["</s>", "\n", *map(chr, range(32, 127))]
SHOWN = (
    "{% if messages[-1].content == 'show' %}{{ raise_exception('%s: ' ~ {'tools': tools | length if tools else 0,"
    " 'opens': add_generation_prompt, 'thinks': enable_thinking | default(true), 'effort': reasoning_effort"
    " | default('none'), 'roles': messages | map(attribute='role') | list} | tojson) }}{% endif %}"
    "{% for message in messages %}{{ message.role }}:{{ message.content }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "f"}}
TURNS = [{"role": "user", "content": "hi"}]
Ask = Callable[..., httpx.Response]


def write_model(folder: Path, chat_template: object) -> Path:
    """A configuration and a tokenizer, whose model is invented when it is loaded."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({one: index for index, one in enumerate(CHARACTERS)}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(CHARACTERS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))
    return folder


def served(folder: Path, *options: str) -> Iterator[Ask]:
    server: Server = start("serve", str(folder), "--load-format", "dummy", "--dtype", "float32", *options)
    with httpx.Client(base_url=server.url, timeout=100) as client:

        def ask(messages: list[dict[str, Any]] = TURNS, **fields: Any) -> httpx.Response:
            body = {"model": server.model, "messages": messages, "max_tokens": 1, **fields}
            return client.post("/chat/completions", json=body)

        yield ask
    assert stop(server) == 0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A model with two templates of its own."""
    named = [{"name": name, "template": SHOWN.replace("%s", name)} for name in ("default", "tool_use")]
    yield from served(write_model(tmp_path_factory.mktemp("own"), named))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A model with a template in place of its own, and trust in those of requests."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "mine.jinja").write_text(SHOWN.replace("%s", "mine"))
    yield from served(
        write_model(folder, "{{ raise_exception('not mine') }}"),
        *("--chat-template", str(folder / "mine.jinja"), "--trust-request-chat-template"),
        *("--reasoning-parser", "think"),
    )


def shown(answer: httpx.Response) -> tuple[str, dict[str, Any]]:
    """Which template was shown the request, and what it saw."""
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    name, _, seen = message.removeprefix("the chat template refuses: ").partition(": ")
    return name, json.loads(seen)


def length(answer: httpx.Response) -> int:
    """Of the prompt."""
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens"])


SHOW = [{"role": "system", "content": "s"}, {"role": "user", "content": "show"}]


def test_the_checkpoints_own_template_runs_and_sees_the_request(own: Ask) -> None:
    seen = {"tools": 0, "opens": True, "thinks": True, "effort": "none", "roles": ["system", "user"]}
    assert shown(own(SHOW)) == ("default", seen)
    assert length(own()) == len("user:hi;assistant:")


def test_a_template_for_tools_runs_where_there_are_tools(own: Ask) -> None:
    name, seen = shown(own(SHOW, tools=[TOOL, {"type": "function", "function": {"name": "g"}}]))
    assert (name, seen["tools"]) == ("tool_use", 2)
    assert shown(own(SHOW, tools=[TOOL], tool_choice="none"))[0] == "default"


def test_the_answers_turn_is_opened_unless_asked_otherwise(own: Ask) -> None:
    assert length(own(add_generation_prompt=False)) == len("user:hi;")
    assert shown(own(SHOW, add_generation_prompt=False))[1]["opens"] is False


def test_the_last_message_is_continued_where_asked(own: Ask) -> None:
    turns = [*TURNS, {"role": "assistant", "content": "Well, "}]
    assert length(own(turns, continue_final_message=True, add_generation_prompt=False)) == len(
        "user:hi;assistant:Well, "
    )
    assert length(own(turns, add_generation_prompt=False)) == len("user:hi;assistant:Well, ;")
    both = own(turns, continue_final_message=True, add_generation_prompt=True)
    assert (both.status_code, both.json()["error"]["param"]) == (400, "continue_final_message")


def test_arguments_reach_the_template_by_name(own: Ask) -> None:
    name, seen = shown(own(SHOW, chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low"))
    assert (name, seen["thinks"], seen["effort"]) == ("default", False, "low")


@pytest.mark.parametrize(
    ("kwargs", "reason"), [({"colour": "red"}, "enable_thinking"), ({"messages": []}, "a field of its own")]
)
def test_arguments_that_the_template_does_not_read_are_refused(own: Ask, kwargs: dict[str, Any], reason: str) -> None:
    answer = own(chat_template_kwargs=kwargs)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "chat_template_kwargs")
    assert reason in error["message"]


def test_a_template_of_the_request_does_not_run_unless_the_operator_allows_it(own: Ask, given: Ask) -> None:
    refused = own(chat_template="{{ 1 }}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "chat_template")
    assert length(given(chat_template="{{ messages[0].content }}!")) == len("hi!")


def test_a_template_given_at_start_stands_in_place_of_the_checkpoints(given: Ask) -> None:
    assert shown(given(SHOW))[0] == "mine"
    assert shown(given(SHOW, tools=[TOOL]))[0] == "mine"
    assert length(given()) == len("user:hi;assistant:")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(1000000) %}{% endfor %}", "range"),
        ("{% include 'x' %}", "no loader"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{% if %}", "not sound"),
    ],
)
def test_a_template_stays_within_its_sandbox(given: Ask, template: str, reason: str) -> None:
    answer = given(chat_template=template)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"].lower()
    assert length(given()) == len("user:hi;assistant:")


def test_what_templates_call_is_there(given: Ask) -> None:
    template = (
        "{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor -%}"
        "{{ strftime_now('%Y') }}{{ {'b': '<', 'a': 1} | tojson }}{{ messages | tojson(indent=None) | length > 0 }}"
    )
    assert length(given(chat_template=template)) == len('hiYYYY{"b": "<", "a": 1}True')


@pytest.mark.parametrize("thinks", [True, False])
def test_thinking_is_switched_off_by_name(given: Ask, thinks: bool) -> None:
    template = "{{ messages[0].content }}<think>{% if not enable_thinking | default(true) %}</think>{% endif %}"
    answer = given(
        chat_template=template, chat_template_kwargs={"enable_thinking": thinks}, max_tokens=8, min_tokens=8, seed=1
    )
    assert length(answer) == len("hi<think>" if thinks else "hi<think></think>")
    message = answer.json()["choices"][0]["message"]
    assert bool(message.get("reasoning_content")) is thinks
    assert bool(message["content"]) is not thinks
