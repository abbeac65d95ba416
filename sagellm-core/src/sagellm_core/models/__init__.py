"""The architectures that run here, by the name their configuration gives, and those that plug-ins add.

A new one is a file and a line of :data:`ARCHITECTURES`, or of :data:`ENCODERS`; in another distribution, an entry point
of ``sagellm.models``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sagellm_core.loading.base import Checkpoint
from sagellm_protocol import plugins
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .base import Model, ModelClass
from .bert import Bert, Roberta
from .cohere import Cohere
from .deepseek import DeepSeek
from .encoder import Encoder, EncoderClass
from .falcon import Falcon
from .gemma import Gemma
from .gemma2 import Gemma2
from .gemma3 import Gemma3
from .gpt2 import GPT2
from .gpt_neox import GPTNeoX
from .gpt_oss import GptOss
from .granite import Granite
from .llama import Llama
from .llama4 import Llama4, Llama4OfImages
from .mistral import Mistral
from .mixtral import Mixtral
from .olmo2 import Olmo2
from .phi3 import Phi3
from .qwen2 import Qwen2
from .qwen2_moe import Qwen2MoE
from .qwen3 import Qwen3
from .qwen3_moe import Qwen3MoE
from .smollm3 import SmolLM3
from .stablelm import StableLM

ARCHITECTURES: Mapping[str, ModelClass] = {
    "Cohere2ForCausalLM": Cohere,
    "CohereForCausalLM": Cohere,
    "DeepseekV2ForCausalLM": DeepSeek,
    "DeepseekV3ForCausalLM": DeepSeek,
    "FalconForCausalLM": Falcon,
    "GPT2LMHeadModel": GPT2,
    "GPTNeoXForCausalLM": GPTNeoX,
    "Gemma2ForCausalLM": Gemma2,
    "Gemma3ForCausalLM": Gemma3,
    "GemmaForCausalLM": Gemma,
    "GptOssForCausalLM": GptOss,
    "GraniteForCausalLM": Granite,
    "Llama4ForCausalLM": Llama4,
    "Llama4ForConditionalGeneration": Llama4OfImages,
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Mistral,
    "MixtralForCausalLM": Mixtral,
    "Olmo2ForCausalLM": Olmo2,
    "Phi3ForCausalLM": Phi3,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen2MoeForCausalLM": Qwen2MoE,
    "Qwen3ForCausalLM": Qwen3,
    "Qwen3MoeForCausalLM": Qwen3MoE,
    "SmolLM3ForCausalLM": SmolLM3,
    "StableLmForCausalLM": StableLM,
}

ENCODERS: Mapping[str, EncoderClass] = {
    "BertForSequenceClassification": Bert,
    "BertModel": Bert,
    "RobertaForSequenceClassification": Roberta,
    "RobertaModel": Roberta,
    "XLMRobertaForSequenceClassification": Roberta,
    "XLMRobertaModel": Roberta,
}


def architectures() -> tuple[str, ...]:
    """Names of all that can be loaded, plug-ins included."""
    return tuple(sorted({*ARCHITECTURES, *ENCODERS, *plugins.installed(plugins.MODELS)}))


def find(architecture: str) -> ModelClass | EncoderClass:
    """The class that loads an architecture: one of ours, a plug-in's, or what runs ``transformers``' own code.

    Raises:
        SageLLMError: ``CONFLICT`` when a plug-in claims one that is built in; ``NOT_INSTALLED`` when a plug-in cannot
            be imported; ``UNSUPPORTED`` for any other where ``transformers`` is not installed, listing those known.
    """
    points = plugins.installed(plugins.MODELS)
    built_in = ARCHITECTURES.get(architecture) or ENCODERS.get(architecture)
    if built_in is not None and architecture in points:
        raise SageLLMError(
            ErrorCode.CONFLICT,
            f"{architecture} is built in, but {points[architecture].value} claims it too in {plugins.MODELS};"
            " uninstall it or give it a name of its own",
            "model",
        )
    if built_in is not None:
        return built_in
    if architecture in points:
        return cast(ModelClass, plugins.load(plugins.MODELS, architecture))
    return _foreign(architecture)


def _foreign(architecture: str) -> ModelClass:
    try:
        from .foreign import Foreign  # imports transformers, which no other architecture needs
    except ImportError as error:
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            f"architecture {architecture!r} is not offered; known are {', '.join(architectures())}. Many others run"
            f" through transformers' own code: pip install 'isagellm-core[transformers]' ({error})",
            "model",
        ) from error
    return Foreign


def load(checkpoint: Checkpoint, ops: Backend[Any], dtype: DType, quantization: str | None = None) -> Model | Encoder:
    """Load a checkpoint on a backend.

    Args:
        checkpoint: Configuration and weights.
        ops: The backend.
        dtype: Type to compute in.
        quantization: A format of the backend's to quantise projections to at load.

    Raises:
        SageLLMError: As :func:`find`, and what the model's class says of weights that do not fit.
    """
    return find(checkpoint.config.architecture)(checkpoint, ops, dtype, quantization)
