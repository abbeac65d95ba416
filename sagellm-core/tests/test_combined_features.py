"""Whatever is asked together, in whatever order and of however small an engine, each gets what it gets alone.

A real model and all that there is around it: drafts, grammars, adapters, beams, preemption, offload, sleep, aborts,
deadlines. ``COMBINED_EXAMPLES=1000`` looks for longer, and elsewhere each time.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from core_harness import assert_all_free
from lora import save_adapter
from sagellm_core.front.engine import FrontEngine
from sagellm_protocol import (
    SLO,
    AdapterSpec,
    EmbedRequest,
    EngineSpec,
    ErrorCode,
    FinishReason,
    Request,
    SamplingParams,
    StructuredOutput,
)
from sagellm_protocol.responses import EmbedResponse, Output
from stepped import Asked, SteppedEngine
from tiny_llm import write_tiny

EXAMPLES = os.environ.get("COMBINED_EXAMPLES")
CONTEXT = 64
KV_BYTES = 2 * 2 * 8 * 2 * 4
"""Of a token: keys and values of 2 layers with 2 heads of 8 in float32."""
LONG_S = 1000.0
NEAR = 1e-4
"""Log-probabilities nearer than this may change places: sums were added up in another order."""

# Prompts are cut from few texts, so that prefixes are shared often and repeat themselves.
TEXTS = ["one two three, one two three, one two threes", "abcabcabcabdabcabcabcabdabcabcabcabd", "[1, 2, 3] {'a': 1}"]
SCHEMA = {"type": "array", "items": {"enum": [1, "a", None]}, "minItems": 1, "maxItems": 3}
FORMS: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
    "schema": ({"json_schema": SCHEMA}, lambda text: jsonschema.validate(json.loads(text), SCHEMA)),
    "regex": ({"regex": "(ab|cd){1,4}(x|yz)"}, lambda text: _matches("(ab|cd){1,4}(x|yz)", text)),
    "choice": ({"choice": ["yes", "no, it is not"]}, lambda text: _matches("yes|no, it is not", text)),
    "grammar": ({"grammar": 'start: "x" num ";"\nnum: /[0-9]{1,3}/'}, lambda text: _matches("x[0-9]{1,3};", text)),
    "none at all": ({"regex": "(ab"}, lambda text: pytest.fail("what cannot be compiled was followed")),
}


def _matches(pattern: str, text: str) -> None:
    assert re.fullmatch(pattern, text), text


def _either(*values: Any) -> st.SearchStrategy[Any]:
    """Mostly the first, which asks for nothing."""
    return st.sampled_from([values[0]] * 4 + list(values[1:]))


SAMPLED = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.0, 1.0, 0.7, 1.5]),
        "seed": st.integers(0, 2),
        "max_tokens": st.sampled_from([8, 16, 24, 1, None]),
        "n": _either(1, 2, 3),
        "top_k": _either(0, 5),
        "top_p": _either(1.0, 0.8),
        "min_p": _either(0.0, 0.05),
        "presence_penalty": _either(0.0, 0.6, -1.0),
        "frequency_penalty": _either(0.0, 0.5),
        "repetition_penalty": _either(1.0, 1.3, 0.8),
        "logit_bias": _either(None, {10: 4.0, 20: -100.0, 40: 2.0}),
        "allowed_token_ids": _either(None, tuple(range(10, 90, 3))),
        "bad_words": _either((), ("ab", "e"), ("a",)),
        "stop": _either((), ("a", "z9", "q")),
        "stop_token_ids": _either((), (5, 40, 61)),
        "include_stop_str_in_output": _either(False, True),
        "ignore_eos": st.booleans(),
        "min_tokens": _either(0, 1, 5),
        "logprobs": _either(None, 0, 3),
        "prompt_logprobs": _either(None, 0, 2),
    }
)
SCORED = st.fixed_dictionaries({"max_tokens": st.just(0), "prompt_logprobs": st.sampled_from([0, 1, 3])})
SEARCHED = st.fixed_dictionaries(
    {
        "temperature": st.just(0.0),
        "beam_width": st.sampled_from([2, 3]),
        "n": st.sampled_from([1, 2]),
        "max_tokens": st.sampled_from([1, 6, 10]),
        "min_tokens": _either(0, 1),
        "stop_token_ids": _either((), (5, 40, 61)),
        "length_penalty": _either(1.0, 0.0, 2.0),
        "early_stopping": _either(False, True, "never"),
        "logprobs": _either(None, 2),
    }
)


WANTED = st.fixed_dictionaries(
    {
        "text": st.sampled_from(TEXTS),
        "length": st.sampled_from([17, 30, 44, 8, 1]),
        "sampling": st.one_of(SAMPLED, SAMPLED, SAMPLED, SCORED, SEARCHED),
        "form": _either(None, *FORMS),
        "priority": _either(0, -1, 1),
        "salt": _either(None, "a"),
        "adapter": _either(None, "one", "two"),
        "deadline": _either(False, True),
        "echo": _either(False, True),
    }
)


def _request(
    request_id: str,
    *,
    text: str,
    length: int,
    sampling: dict[str, Any],
    form: str | None,
    priority: int,
    salt: str | None,
    adapter: str | None,
    deadline: bool,
    echo: bool,
) -> Request:
    if sampling["max_tokens"] is not None:
        sampling = {**sampling, "min_tokens": min(sampling.get("min_tokens", 0), sampling["max_tokens"])}
    searched = "beam_width" in sampling  # beams follow no form, which the contract refuses by name
    return Request(
        request_id=request_id,
        model="m",
        prompt=text[:length],
        sampling=SamplingParams(**sampling),
        structured=None if form is None or searched else StructuredOutput.model_validate(FORMS[form][0]),
        priority=priority,
        cache_salt=salt,
        adapter=adapter,
        slo=SLO(deadline_ms=LONG_S * 1e3) if deadline else None,
        echo=echo,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models to answer and to draft, and adapters."""
    folder = tmp_path_factory.mktemp("combined")
    write_tiny(folder / "target")
    write_tiny(folder / "stranger", seed=6)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder / "target")
    for seed, name in enumerate(("one", "two")):
        save_adapter(reference, folder / "adapters" / name, seed=seed, r=3)
    return folder


def opened(folder: Path, **fields: Any) -> SteppedEngine:
    asked = {
        "model": str(folder / "target"),
        "served_names": ("m",),
        "core": "inline",
        "dtype": "float32",
        "threads": 1,
        "max_model_len": CONTEXT,
        "adapters": {name: str(folder / "adapters" / name) for name in ("one", "two")},
        "adapter_root": str(folder / "adapters"),
        "options": {"pooling": "last"},
        **fields,
    }
    return SteppedEngine(EngineSpec.model_validate(asked))


class Alone:
    """What each request gets with an engine to itself, one that drafts nothing and keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self._open = functools.partial(opened, folder, prefix_caching=False, max_num_seqs=8, block_size=16)
        self._engines: dict[tuple[str, int | None], SteppedEngine] = {}
        self._answers: dict[str, Asked] = {}
        self._vectors: dict[str, EmbedResponse] = {}

    def answer(self, device: str, request: Request) -> Asked:
        key = device + _anonymous(request).to_wire().decode()
        if key not in self._answers:
            self._answers[key] = self._engine(device).answer(_anonymous(request))
        return self._answers[key]

    def vectors(self, device: str, request: EmbedRequest) -> EmbedResponse:
        key = device + _anonymous(request).to_wire().decode()
        if key not in self._vectors:
            engine = self._engine(device)
            self._vectors[key] = engine.until(engine.engine.embed(_anonymous(request)))
        return self._vectors[key]

    def might_say(self, device: str, request: Request, index: int, tokens: list[int]) -> bool:
        """Whether logits that are off by no more than ``NEAR`` could have it begin a choice with these tokens."""
        for noise in range(16):
            answer = self._engine(device, noise).answer(_anonymous(request))
            if answer.said()[index][: len(tokens)] == tokens:
                return True
        return False

    def stop(self) -> None:
        for engine in self._engines.values():
            engine.stop()

    def _engine(self, device: str, noise: int | None = None) -> SteppedEngine:
        key = device, noise
        if key not in self._engines:
            engine = self._engines[key] = self._open(device=device)
            if noise is not None:
                _disturb(engine, noise)
        return self._engines[key]


def _anonymous(request: Any) -> Any:
    """What its answer depends on."""
    return request.model_copy(update={"request_id": "alone", "priority": 0, "cache_salt": None, "slo": None})


def _disturb(engine: SteppedEngine, seed: int) -> None:
    """Have its model's logits be off by up to half of ``NEAR`` each, and so by ``NEAR`` from one another."""
    executor: Any = engine.core._executor
    model = executor._runner._model
    exact, generator = model.logits, torch.Generator().manual_seed(seed)

    def disturbed(hidden: Any) -> Any:
        logits = exact(hidden)
        return logits + NEAR * (torch.rand(logits.shape, generator=generator) - 0.5)

    model.logits = disturbed


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[Alone]:
    alone = Alone(folder)
    yield alone
    alone.stop()


class CombinedMachine(RuleBasedStateMachine):
    def __init__(self, folder: Path, alone: Alone) -> None:
        super().__init__()
        self._folder = folder
        self._alone = alone
        self._open: SteppedEngine | None = None
        self._asked: list[Asked] = []
        self._embedded: list[tuple[EmbedRequest, Any]] = []
        self._left: set[str] = set()
        self._asleep: set[str] = set()
        self._expired = False

    @initialize(
        device=st.sampled_from(["cpu", "cpu", "reference"]),
        block_size=st.sampled_from([4, 8, 16]),
        spare_blocks=st.sampled_from([0, 1, 2, 12]),
        max_num_seqs=st.sampled_from([4, 5, 3, 1]),
        spare_tokens=st.sampled_from([40, 11, 20, 0]),
        prefix_caching=st.sampled_from([True, True, False]),
        kept_tokens=st.sampled_from([0, 0, 32, 4000]),
        drafting=st.sampled_from([None, "ngram", "twin", "stranger"]),
        max_adapters=st.integers(1, 2),
    )
    def start(
        self,
        device: str,
        block_size: int,
        spare_blocks: int,
        max_num_seqs: int,
        spare_tokens: int,
        prefix_caching: bool,
        kept_tokens: int,
        drafting: str | None,
        max_adapters: int,
    ) -> None:
        self._device = device
        speculative = {
            None: None,
            "ngram": {"min_match": 1, "adaptive": False},
            "twin": {"method": "draft", "model": str(self._folder / "target"), "tokens": 4, "adaptive": False},
            "stranger": {"method": "draft", "model": str(self._folder / "stranger"), "tokens": 3, "adaptive": False},
        }[drafting]
        bytes_each = KV_BYTES * (2 if drafting in {"twin", "stranger"} else 1)
        self._open = opened(
            self._folder,
            device=device,
            block_size=block_size,
            kv_cache_memory_bytes=(CONTEXT + spare_blocks * block_size) * bytes_each,
            max_num_seqs=min(max_num_seqs, CONTEXT // block_size),
            max_num_batched_tokens=max_num_seqs + spare_tokens,
            prefix_caching=prefix_caching,
            kv_offload_memory_bytes=(kept_tokens * bytes_each or None) if prefix_caching else None,
            speculative=speculative,
            max_adapters=max_adapters,
        )

    @property
    def _engine(self) -> SteppedEngine:
        assert self._open is not None
        return self._open

    @property
    def _front(self) -> FrontEngine:
        return self._engine.engine

    @rule(all_wanted=st.lists(WANTED, min_size=1, max_size=5))
    def ask(self, all_wanted: list[dict[str, Any]]) -> None:
        for wanted in all_wanted:
            request = _request(str(len(self._asked)), **wanted)
            self._asked.append(self._engine.ask(request))

    @rule(length=st.integers(1, 44), text=st.sampled_from(TEXTS), adapter=_either(None, "one"))
    def embed(self, length: int, text: str, adapter: str | None) -> None:
        inputs = (text[:length], text[-length:])
        request = EmbedRequest(request_id=f"e{len(self._embedded)}", model="m", inputs=inputs, adapter=adapter)
        self._embedded.append((request, self._engine.loop.create_task(self._front.embed(request))))
        self._engine.spin()

    @rule(times=st.integers(1, 12))
    def turn(self, times: int) -> None:
        for _ in range(times):
            self._engine.turn()

    @rule(data=st.data(), leaves=st.booleans())
    def abort(self, data: st.DataObject, leaves: bool) -> None:
        live = [asked for asked in self._asked if not asked.task.done()]
        if not live:
            return
        asked = data.draw(st.sampled_from(live))
        self._left.add(asked.request.request_id)
        if leaves:
            asked.task.cancel()
            self._engine.spin()
        else:
            self._engine.loop.run_until_complete(self._front.abort(asked.request.request_id))

    @rule(how=st.sampled_from(["time", "adapter", "sleep", "sleep deeply", "abort and sleep", "reload"]))
    def change(self, how: str) -> None:
        """Something that concerns many at once."""
        if how == "time":
            self._engine.loop.ahead_s += 2 * LONG_S
            self._expired = True
            self._engine.spin()
        elif how == "adapter":
            self._engine.until(self._front.unload_adapter("two"))
            self._engine.until(self._front.load_adapter(AdapterSpec(name="two", path="two")))
        elif how == "reload":
            self._engine.until(self._front.reload(str(self._folder / "target")))
        else:
            self._sleep(2 if how == "sleep deeply" else 1, abort=how == "abort and sleep")

    def _sleep(self, level: int, *, abort: bool) -> None:
        if abort:
            live = {asked.request.request_id for asked in self._asked if not asked.task.done()}
            self._left |= live
            self._asleep |= live  # one whose prompt is still being read may find the engine asleep
        self._engine.until(self._front.sleep(level, "abort" if abort else "wait"))
        assert self._engine.core.stats().cached_blocks == 0
        self._engine.until(self._front.wake())

    def teardown(self) -> None:
        if self._open is None:
            return
        try:
            self._finish()
        finally:
            self._open.stop()

    def _finish(self) -> None:
        tasks = [asked.task for asked in self._asked] + [task for _, task in self._embedded]
        self._engine.wait_for(lambda: all(task.done() for task in tasks))
        self._engine.turn()
        core = self._engine.core
        assert_all_free(core)
        assert core.in_flight == 0
        for asked in self._asked:
            self._check(asked)
        for request, task in self._embedded:
            self._check_vectors(request, task)
        self._check_counters()

    def _check(self, asked: Asked) -> None:
        if asked.task.cancelled():
            assert asked.request.request_id in self._left
        else:
            asked.task.result()
        alone = self._alone.answer(self._device, asked.request)
        if asked.completed:
            assert alone.completed, f"alone it is refused: {alone.events}"
            self._check_same(asked, alone)
            return
        for index, tokens in asked.said().items():
            self._check_tokens(asked, index, tokens, alone.said()[index][: len(tokens)])
        if asked.error is None:
            assert asked.task.cancelled()
        elif asked.error.error.code is ErrorCode.CANCELLED:
            assert asked.request.request_id in self._left
        elif asked.error.error.code is ErrorCode.UNAVAILABLE:
            assert asked.request.request_id in self._asleep
        elif asked.error.error.code is ErrorCode.DEADLINE_EXCEEDED:
            assert self._expired
            assert asked.request.slo is not None
        else:
            assert alone.error is not None, f"alone it is answered, and here: {asked.error}"
            assert (asked.error.error.code, asked.error.error.param) == (
                alone.error.error.code,
                alone.error.error.param,
            )

    def _check_same(self, asked: Asked, alone: Asked) -> None:
        here, there = asked.response(), alone.response()
        form = asked.request.structured
        assert here.usage.prompt_tokens == there.usage.prompt_tokens
        for one, other in zip(here.outputs, there.outputs, strict=True):
            if not self._check_tokens(asked, one.index, list(one.token_ids), list(other.token_ids)):
                continue  # and beyond a tie it is another text
            assert (one.text, one.finish_reason, one.stop_reason) == (
                other.text,
                other.finish_reason,
                other.stop_reason,
            )
            assert (one.score is None) == (other.score is None)
            assert one.score is None or one.score == pytest.approx(other.score, abs=NEAR)
            assert _reported(one.logprobs) == pytest.approx(_reported(other.logprobs), abs=NEAR)
            if form is not None and one.stop_reason is None and one.finish_reason is FinishReason.STOP:
                self._check_form(asked, one)
        assert _reported(here.prompt_logprobs) == pytest.approx(_reported(there.prompt_logprobs), abs=NEAR)

    def _check_form(self, asked: Asked, output: Output) -> None:
        form = asked.request.structured
        [check] = [check for given, check in FORMS.values() if StructuredOutput.model_validate(given) == form]
        prompt = asked.request.prompt if asked.request.echo else None
        check(output.text[len(prompt or "") :])

    def _check_tokens(self, asked: Asked, index: int, here: list[int], there: list[int]) -> bool:
        """Whether tokens are the same; they may only be others where the model itself is of two minds."""
        if here == there:
            return True
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(here, there, strict=False))))
        tied = self._alone.might_say(self._device, asked.request, index, here[: same + 1])
        assert tied, f"choice {index} of {asked.request}: {here} and alone {there}"
        return False

    def _check_vectors(self, request: EmbedRequest, task: Any) -> None:
        if task.exception() is not None:  # put to sleep with others
            assert task.exception().code is ErrorCode.CANCELLED
            return
        expected = self._alone.vectors(self._device, request)
        for one, other in zip(task.result().vectors, expected.vectors, strict=True):
            assert one.values == pytest.approx(other.values, abs=NEAR)

    def _check_counters(self) -> None:
        stats = self._engine.until(self._front.stats())
        outcomes = stats.completed + stats.failed + stats.cancelled + stats.expired + stats.refused
        assert outcomes == len(self._asked) + len(self._embedded)
        # Where the tokens that are allowed and those that the form has are none together, alone as here.
        errors = [asked.error.error.code for asked in self._asked if asked.error is not None]
        assert stats.failed == errors.count(ErrorCode.ENGINE_FAILED)
        embedded = sum(task.exception() is None for _, task in self._embedded)
        assert stats.completed == sum(asked.completed for asked in self._asked) + embedded
        assert (stats.running, stats.waiting, stats.queued_prompt_tokens) == (0, 0, 0)
        assert (stats.prefix_hit_tokens or 0) <= (stats.prefix_queried_tokens or 0)
        assert (stats.host_hit_tokens or 0) <= (stats.prefix_hit_tokens or 0)
        assert (stats.accepted_tokens or 0) <= (stats.drafted_tokens or 0)


def _reported(positions: Any) -> list[float]:
    """What was produced, its log-probability and those of the likeliest; not which of two equal ones stands first."""
    found = []
    for position in positions or ():
        if position is not None:
            found += [float(position.token_id), position.logprob, *(one.logprob for one in position.top)]
    return found


@pytest.mark.timeout(0 if EXAMPLES else 300)
def test_whatever_is_asked_together_each_gets_what_it_gets_alone(folder: Path, alone: Alone) -> None:
    run_state_machine_as_test(
        lambda: CombinedMachine(folder, alone),
        settings=settings(
            max_examples=int(EXAMPLES or 25),
            stateful_step_count=14,
            derandomize=EXAMPLES is None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
