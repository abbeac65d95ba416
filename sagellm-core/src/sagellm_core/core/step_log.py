"""A log of steps, by choice: a line of JSON for each, with what it computed, what waits, what is held and its time.

Knows what a step is, and nothing of who asked for it.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from sagellm_protocol.errors import ErrorCode, SageLLMError

from .plan import StepPlan, StepResult
from .scheduler import Step

logger = logging.getLogger(__name__)


class StepLog:
    """Writes one engine's steps.

    Args:
        path: The file; made if need be, and appended to.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1)  # whoever follows it sees whole lines
        except OSError as error:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"the step log {str(path)!r} cannot be written ({error.strerror}); name a file in a folder that can",
                "options.step_log",
            ) from error
        self._path = path

    def write(
        self,
        step: Step,
        plan: StepPlan,
        result: StepResult | None,
        load: dict[str, int],
        times: tuple[float, float, float],
    ) -> None:
        """Write one step, once it is accounted for.

        Args:
            step: As scheduled.
            plan: Of it.
            result: What it brought; ``None`` where it failed.
            load: What runs, waits and is held after it, by name.
            times: When scheduling began, when running did, and when it ended; seconds of ``perf_counter``.
        """
        began, scheduled, ran = times
        rows = zip(step.rows, plan.num_computed, plan.num_scheduled, strict=True)
        prompt = sum(max(0, min(count, row.prompt_len - computed)) for row, computed, count in rows)
        line = {
            "time": round(time.time(), 6),
            "step": plan.step,
            "rows": len(step.rows),
            "prompt_tokens": prompt,
            "output_tokens": sum(plan.num_scheduled) - prompt,
            "draft_tokens": sum(plan.drafts),
            "produced": 0 if result is None else sum(len(slot.token_ids) for slot in result.slots),
            "failed": result is None,
            "admitted": len(step.admitted),
            "preempted": len(step.preempted),
            **load,
            "schedule_ms": round((scheduled - began) * 1e3, 4),
            "run_ms": round((ran - scheduled) * 1e3, 4),
            "account_ms": round((time.perf_counter() - ran) * 1e3, 4),
        }
        try:
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        except (OSError, ValueError) as error:  # a full disk is no reason to serve nobody
            if not self._file.closed:
                logger.error("the step log %s ends here: %s", self._path, error)
                self._close_anyhow()

    def close(self) -> None:
        """Write no more."""
        if not self._file.closed:
            self._close_anyhow()

    def _close_anyhow(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # what it still held cannot be written either
            logger.debug("closing the step log: %s", error)
