"""What a ``config.json`` says of rotary embedding: the words of transformers 5, and those of before.

Knows nothing of families: their own keys have been brought to the usual ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .config import RopeConfig, RopeKind
from .errors import corrupt, unsupported
from .fields import Fields

ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
FULL, SLIDING = "full_attention", "sliding_attention"
"""Types of a layer, as files list them."""
_LONGROPE_ONCE: Mapping[str, str] = {"su": "longrope", "yarn": "longrope"}
"""What Phi-3's first releases called it."""


def read_ropes(fields: Fields, head_dim: int, positions: int, kinds: Collection[str]) -> dict[str, RopeConfig]:
    """The rotary embedding of each type of layer; they are one unless the file says otherwise.

    Args:
        fields: The file.
        head_dim: Dimensions of a head.
        positions: Context that the file states.
        kinds: The types of layers that there are; of another nothing need be said.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming a value that cannot be; ``UNSUPPORTED`` for an unknown kind.
    """
    # transformers 5 keeps everything in rope_parameters; before it, rope_theta stood alone beside rope_scaling.
    table = fields.table("rope_parameters") or fields.table("rope_scaling") or Fields(fields.source, {})
    if any(isinstance(value, Mapping) for value in table.values.values()):
        ropes = {kind: _rope(fields, _of_type(table, kind), head_dim, positions) for kind in kinds}
        return {kind: ropes.get(kind) or next(iter(ropes.values())) for kind in (FULL, SLIDING)}
    full = _rope(fields, table, head_dim, positions)
    local = fields.number("rope_local_base_freq", None)
    if local is None:
        return {FULL: full, SLIDING: full}
    return {FULL: full, SLIDING: RopeConfig(theta=local, rotary_dim=full.rotary_dim)}


def _of_type(table: Fields, kind: str) -> Fields:
    found = table.table(kind)
    if found is None:
        raise corrupt(table.source, f"says nothing of layers of type {kind}")
    return found


def _rope(fields: Fields, table: Fields, head_dim: int, positions: int) -> RopeConfig:
    named = table.text("rope_type", None) or table.text("type", None) or "default"
    named = _LONGROPE_ONCE.get(named, named) if "long_factor" in table.values else named
    if named not in ROPE_KINDS:
        raise unsupported(table.source, f"rope type {named!r} is not offered; known are {', '.join(ROPE_KINDS)}")
    kind: RopeKind = named
    return _scaled(fields, table, kind, head_dim, positions)


def _scaled(fields: Fields, table: Fields, kind: RopeKind, head_dim: int, positions: int) -> RopeConfig:
    share = table.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * share)
    if share > 1 or rotary_dim < 2 or rotary_dim % 2:
        raise corrupt(
            table.source, f"partial_rotary_factor {share} of head_dim {head_dim} is not an even number of dimensions"
        )
    original = table.integer("original_max_position_embeddings", None)
    original = fields.integer("original_max_position_embeddings", original) or positions
    rope = RopeConfig(
        theta=table.number("rope_theta", fields.number("rope_theta", 10_000.0)),
        rotary_dim=rotary_dim,
        kind=kind,
        factor=_factor(table, kind, positions, original),
        original_max_position_embeddings=None if kind == "default" else original,
        low_freq_factor=table.number("low_freq_factor", 1.0),
        high_freq_factor=table.number("high_freq_factor", 4.0),
        beta_fast=table.number("beta_fast", 32.0),
        beta_slow=table.number("beta_slow", 1.0),
        attention_factor=table.number("attention_factor", None),
        mscale=table.number("mscale", None, positive=False),
        mscale_all_dim=table.number("mscale_all_dim", None, positive=False),
        truncate=table.flag("truncate", True),
        factors=_divisors(table, "short_factor", rotary_dim) if kind == "longrope" else (),
        long_factors=_divisors(table, "long_factor", rotary_dim) if kind == "longrope" else (),
        context=positions if kind == "longrope" else None,
    )
    if kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise corrupt(table.source, "high_freq_factor must be larger than low_freq_factor")
    return rope


def _divisors(table: Fields, key: str, rotary_dim: int) -> tuple[float, ...]:
    values = table.values.get(key)
    count = rotary_dim // 2
    if not isinstance(values, list) or len(values) != count:
        raise corrupt(table.source, f"{key} must list {count} numbers, one for each rotated pair")
    numbers = Fields(table.source, {f"{key}[{index}]": value for index, value in enumerate(values)})
    return tuple(numbers.number(name) for name in numbers.values)


def _factor(table: Fields, kind: RopeKind, positions: int, original: int) -> float:
    if kind == "default":
        return 1.0
    derived = kind in ("yarn", "longrope")
    factor = table.number("factor", positions / original) if derived else table.number("factor")
    if factor < 1:
        raise corrupt(table.source, f"factor is {factor}; rope scaling cannot shorten the context")
    return factor


def stated_context(rope: RopeConfig | None, positions: int) -> int:
    """The context a model is made for, any scaling included."""
    # Qwen's model cards have one add YaRN's factor beside the context the model was trained at.
    if rope is not None and rope.kind == "yarn" and rope.original_max_position_embeddings:
        return max(positions, int(rope.original_max_position_embeddings * rope.factor))
    return positions
