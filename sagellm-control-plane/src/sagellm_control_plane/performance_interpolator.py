"""What an instance can do, out of what it was measured to do: a profile, or figures as they come, never a constant.

Both are fitted by the simulator's engine model: a step costs a constant, and something a prompt token, a sequence and
a token of context. Profiles are JSON, lists of measured points: ``prefill.json`` of ``{"isl", "ttft_ms"}``,
``decode.json`` of ``{"concurrency", "context_length", "itl_ms"}``. Times are milliseconds.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

from sagellm_protocol import ErrorCode, SageLLMError

from .legacy.errors import BadValue
from .simulation.engine_model import EngineModel, StepSample, fit

KEPT = 512
"""Points that are fitted to, the newest."""
BEYOND = 2
"""Times the most sequences measured at once, beyond which points tell nothing."""


class _Fitted:
    """Points and the model that they come nearest to.

    Args:
        what: Was measured, for people.
        file: The profile's name.
        fields: Of a point.
        profile_data_dir: Where profiles are.
    """

    def __init__(self, what: str, file: str, fields: tuple[str, ...], profile_data_dir: str | None) -> None:
        self._what, self._fields = what, fields
        self._points: deque[StepSample] = deque(maxlen=KEPT)
        self._model: EngineModel | None = None
        self.gpus_per_instance = 1
        """Devices that figures a GPU are divided by."""
        if profile_data_dir is not None:
            for point in _read(Path(profile_data_dir) / file, fields):
                self._add(*point)

    def _add(self, *values: float) -> None:
        for name, value in zip(self._fields, values, strict=True):
            if not value > 0:
                raise BadValue(f"{name} must be over 0 (got {value!r})", name)
        self._points.append(self._sample(*values))
        self._model = None

    def _sample(self, *values: float) -> StepSample:
        raise NotImplementedError

    @property
    def model(self) -> EngineModel:
        """What comes nearest to the points.

        Raises:
            SageLLMError: ``UNAVAILABLE`` while there is none.
        """
        if not self._points:
            raise SageLLMError(
                ErrorCode.UNAVAILABLE,
                f"no {self._what} was measured yet; call update_online_model, or give profile_data_dir",
            )
        if self._model is None:
            # A fit wants as many points as it has coefficients; repeating them changes nothing of what is nearest.
            points = list(self._points)
            self._model = fit(points * (-(-4 // len(points))))
        return self._model


class PrefillInterpolator(_Fitted):
    """Time to the first token by length of the prompt.

    Args:
        profile_data_dir: Folder of ``prefill.json``.

    Raises:
        ValueError: The profile is missing or cannot be read.
    """

    def __init__(self, profile_data_dir: str | None = None) -> None:
        super().__init__("time to the first token", "prefill.json", ("isl", "ttft_ms"), profile_data_dir)

    def interpolate_ttft(self, isl: float) -> float:
        """Milliseconds for a prompt of ``isl`` tokens.

        Raises:
            SageLLMError: ``UNAVAILABLE`` while nothing was measured.
        """
        model = self.model
        return (model.step_s + model.prompt_token_s * isl) * 1000

    def interpolate_thpt_per_gpu(self, isl: float) -> float:
        """Prompt tokens a second of a GPU, with prompts of ``isl`` tokens one after the other.

        Raises:
            SageLLMError: ``UNAVAILABLE`` while nothing was measured.
        """
        return isl / (self.interpolate_ttft(isl) / 1000) / self.gpus_per_instance

    def update_online_model(self, isl: float, observed_ttft: float) -> None:
        """Learn that a prompt of ``isl`` tokens took so many milliseconds.

        Raises:
            ValueError: For what is not over 0.
        """
        self._add(isl, observed_ttft)

    def _sample(self, *values: float) -> StepSample:
        isl, ttft_ms = values
        return StepSample(round(isl), 0, 0, ttft_ms / 1000)


class DecodeInterpolator(_Fitted):
    """Time between tokens by sequences at once and the length of their contexts.

    Args:
        profile_data_dir: Folder of ``decode.json``.

    Raises:
        ValueError: The profile is missing or cannot be read.
    """

    def __init__(self, profile_data_dir: str | None = None) -> None:
        fields = ("concurrency", "context_length", "itl_ms")
        super().__init__("time between tokens", "decode.json", fields, profile_data_dir)

    def interpolate_itl(self, concurrency: float, context_length: float) -> float:
        """Milliseconds between tokens with so many sequences of such a mean length.

        Raises:
            SageLLMError: ``UNAVAILABLE`` while nothing was measured.
        """
        model = self.model
        each = model.sequence_s + model.context_token_s * context_length
        return (model.step_s + each * concurrency) * 1000

    def find_best_throughput_per_gpu(self, itl: float, context_length: float) -> tuple[float, float, float]:
        """The most that an instance produces while tokens come within ``itl`` milliseconds.

        Returns:
            Tokens a second of a GPU, the time between tokens then in milliseconds, and the sequences at once: one where
            even that is slower than ``itl``, and twice the most that were measured where more would keep it too.

        Raises:
            SageLLMError: ``UNAVAILABLE`` while nothing was measured.
        """
        model = self.model
        each = model.sequence_s + model.context_token_s * context_length
        most = max(point.sequences for point in self._points)
        # Where points do not tell what a sequence costs, time is taken to be in proportion to sequences.
        each, constant = (each, model.step_s) if each > 0 else (model.step_s / most, 0.0)
        concurrency = float(min(BEYOND * most, max(1, int((itl / 1000 - constant) / each + 1e-6))))
        expected_s = constant + each * concurrency
        return concurrency / expected_s / self.gpus_per_instance, expected_s * 1000, concurrency

    def update_online_model(self, concurrency: float, context_length: float, observed_itl: float) -> None:
        """Learn that tokens came so many milliseconds apart.

        Raises:
            ValueError: For what is not over 0.
        """
        self._add(concurrency, context_length, observed_itl)

    def _sample(self, *values: float) -> StepSample:
        concurrency, context_length, itl_ms = values
        return StepSample(0, round(concurrency), round(concurrency * context_length), itl_ms / 1000)


def _read(path: Path, fields: tuple[str, ...]) -> list[tuple[float, ...]]:
    try:
        points: Any = json.loads(path.read_text())
        return [tuple(float(point[field]) for field in fields) for point in points]
    except (OSError, ValueError, KeyError, TypeError) as failure:
        shape = ", ".join(fields)
        raise BadValue(
            f"{path} is no profile, which is a list of points of {shape}: {failure!r}", "profile_data_dir"
        ) from failure
