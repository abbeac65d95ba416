"""``adapter_config.json``, as peft writes it: how large an adapter is, and what it is made for.

What would change how the model computes and is not offered is refused by name, and so is a setting that is not known:
an adapter that is half understood gives wrong answers without a word. Knows nothing of weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagellm_core.loading.errors import corrupt, unsupported
from sagellm_core.loading.fields import Fields, read_object

CONFIG = "adapter_config.json"

# Settings that say where an adapter comes from, how it was trained, or which modules it is in: the last are told by
# its tensors.
_OF_NO_CONSEQUENCE = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version", "revision"),
        *("task_type", "runtime_config", "megatron_core", "qalora_group_size", "fan_in_fan_out", "loftq_config"),
        *("eva_config", "exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),
        *("ensure_weight_tying", "peft_type", "bias", "init_lora_weights"),
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    }
)
_REASONS: Mapping[str, str] = {
    "use_dora": "DoRA also rescales the model's own weights by a magnitude",
    "modules_to_save": "it replaces whole modules of the model",
    "trainable_token_indices": "it replaces rows of the embedding table",
    "target_parameters": "it adapts parameters that are no projections",
    "layer_replication": "it repeats layers of the model",
    "lora_bias": "its up-projections have biases",
    "use_qalora": "QA-LoRA pools what it reads",
    "alora_invocation_tokens": "an activated LoRA begins in the middle of a prompt",
}
_CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin training that change the model's own weights; peft can convert what comes of them to plain LoRA."""
_LITERAL = re.compile(r"\^?[\w.]+")


@dataclass(frozen=True)
class AdapterConfig:
    """How large an adapter is.

    Attributes:
        source: The file.
        rank: Of modules that ``ranks`` has nothing for.
        alpha: Likewise.
        ranks, alphas: By the ends of modules' names; one that begins with ``^`` is a whole name.
        rank_stabilized: Scales by ``alpha / sqrt(rank)`` instead of ``alpha / rank`` (rsLoRA, Kalajdzievski 2023).
    """

    source: Path
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilized: bool

    def rank_of(self, module: str) -> int:
        """Rank of a module's adapter."""
        key = _matching(self.ranks, module)
        return self.rank if key is None else self.ranks[key]

    def scale_of(self, module: str) -> float:
        """What multiplies a module's ``up @ down``."""
        key, rank = _matching(self.alphas, module), self.rank_of(module)
        alpha = self.alpha if key is None else self.alphas[key]
        return float(alpha / (rank**0.5 if self.rank_stabilized else rank))


def read_config(folder: Path) -> AdapterConfig:
    """Read a folder's configuration.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for what is not offered, by name and with the reason; ``INVALID_REQUEST`` for
            values that make no sense.
    """
    source = folder / CONFIG
    values = read_object(source)
    _refuse(source, values)
    fields = Fields(source, values)
    return AdapterConfig(
        source=source,
        rank=fields.integer("r"),
        alpha=fields.number("lora_alpha"),
        ranks={key: Fields(source, {key: value}).integer(key) for key, value in _pattern(source, values, "rank")},
        alphas={key: Fields(source, {key: value}).number(key) for key, value in _pattern(source, values, "alpha")},
        rank_stabilized=fields.flag("use_rslora", False),
    )


def _refuse(source: Path, values: Mapping[str, object]) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        raise unsupported(source, f"peft_type is {kind!r}; adapters of type 'LORA' are offered")
    if values.get("bias", "none") != "none":
        raise unsupported(source, f"bias is {values['bias']!r}: it changes the model's biases; 'none' is offered")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_MODEL):
        raise unsupported(
            source,
            f"init_lora_weights is {start!r}, which changes the model's own weights; convert the adapter to plain LoRA"
            " (peft: save_pretrained with path_initial_model_for_weight_conversion)",
        )
    for name, value in values.items():
        if value and name not in _OF_NO_CONSEQUENCE:
            reason = _REASONS.get(name, "it is not known here, and may change what the adapter does")
            raise unsupported(source, f"{name} is {value!r:.100}, which is not offered: {reason}")


def _pattern(source: Path, values: Mapping[str, object], what: str) -> list[tuple[str, object]]:
    name = f"{what}_pattern"
    pattern = values.get(name) or {}
    if not isinstance(pattern, dict):
        raise corrupt(source, f"{name} is {pattern!r:.100}; it must be an object")
    for key in pattern:
        if not _LITERAL.fullmatch(key):
            raise unsupported(source, f"{name} has the key {key!r}, a regular expression; names of modules are offered")
    return list(pattern.items())


def _matching(pattern: Mapping[str, object], module: str) -> str | None:
    # The first that fits counts, as in peft.
    for key in pattern:
        if key.startswith("^"):
            if module == key[1:]:
                return key
        elif module == key or module.endswith(f".{key}"):
            return key
    return None
