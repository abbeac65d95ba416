"""Other names for models, each standing for one or for several by shares: for a stable name, or a canary.

Knows nothing of requests but the model they name.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from sagellm_protocol import ErrorCode, ModelInfo, SageLLMError

from .fleet import Fleet
from .registry import Registry

Targets = Mapping[str, float]


class Aliases:
    """Aliases that someone set, which the registry keeps, and those of a file that is watched.

    A name may stand for itself too: ``{"m": {"m": 95, "m-next": 5}}`` sends a twentieth of ``m`` elsewhere.
    """

    def __init__(self, registry: Registry, fleet: Fleet, rng: random.Random) -> None:
        self._registry = registry
        self._fleet = fleet
        self._rng = rng
        self._listed: Mapping[str, Targets] = {}

    def set(self, name: str, targets: Targets | None) -> None:
        """Let ``name`` stand for models by their shares, or with ``None`` for nothing.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for shares that are none.
        """
        if targets is not None:
            check(name, targets)
        self._registry.alias(name, targets)

    def follow(self, listed: Mapping[str, Targets]) -> None:
        """Those of the file are now these; they come before those that were set."""
        self._listed = dict(listed)

    def resolve(self, model: str) -> str:
        """The model that a request for ``model`` goes to: one that can be had now, by the shares of those."""
        targets = self._listed.get(model) or self._registry.targets(model)
        if targets is None:
            return model
        for able in (self._with(targets, ready=True), self._with(targets, ready=False)):
            if able:
                return self._rng.choices(list(able), list(able.values()))[0]
        return next(iter(targets))

    def models(self, served: Sequence[ModelInfo]) -> list[ModelInfo]:
        """What can be asked for, aliases included. One of several models offers what all of them do."""
        known = {info.name: info for info in served}
        for name, targets in {**self._registry.aliases, **self._listed}.items():
            behind = [info for target in targets if (info := known.get(target)) is not None]
            if behind:
                known[name] = _together(name, behind)
        return [known[name] for name in sorted(known)]

    def _with(self, targets: Targets, *, ready: bool) -> dict[str, float]:
        return {
            target: share
            for target, share in targets.items()
            if share > 0 and any(one.ready if ready else one.hopeful for one in self._fleet.serving(target))
        }


def check(name: str, targets: Targets) -> None:
    """Refuse what are no shares."""
    if not name or not targets or not all(math.isfinite(one) and one >= 0 for one in targets.values()):
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"the alias {name!r} stands for models by shares of 0 or more, as {{'model': 1}} (got {dict(targets)!r})",
            "aliases",
        )
    if not any(targets.values()):
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"the alias {name!r} gives no model a share: {dict(targets)!r}", "aliases"
        )


def _together(name: str, behind: Sequence[ModelInfo]) -> ModelInfo:
    lengths = [info.max_model_len for info in behind if info.max_model_len is not None]
    return ModelInfo(
        name=name,
        engines=sum(info.engines for info in behind),
        ready=sum(info.ready for info in behind),
        mock=any(info.mock for info in behind),
        features=frozenset.intersection(*(info.features for info in behind)),
        max_model_len=min(lengths, default=None),
        created_s=min(info.created_s for info in behind),
    )
