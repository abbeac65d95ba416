"""Which reader a path needs: a table of formats, and the refusal of what none of them reads.

Knows nothing of catalogues or hubs: the path exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sagellm_protocol.errors import ErrorCode, SageLLMError

from .base import Checkpoint
from .config import ModelConfig
from .dummy import DummyCheckpoint
from .errors import corrupt, not_a_checkpoint, unsupported
from .gguf import MAGIC, GGUFFile
from .gguf_checkpoint import GGUFCheckpoint
from .gguf_config import read_gguf_config
from .hf_config import read_hf_config
from .quantized import scheme_of
from .safetensors_checkpoint import SafetensorsCheckpoint


def _open_safetensors(path: Path) -> Checkpoint:
    checkpoint = SafetensorsCheckpoint(path)
    if checkpoint.config.quantization is None:
        return checkpoint
    from .quantized.checkpoint import QuantizedCheckpoint  # needs NumPy, which not every process needs

    scheme = scheme_of(checkpoint.config.raw, path)
    assert scheme is not None, "the configuration was read as that of quantised weights"
    return QuantizedCheckpoint(checkpoint, scheme)


_READERS: Mapping[str, Callable[[Path], Checkpoint]] = {
    "gguf": GGUFCheckpoint,
    "safetensors": _open_safetensors,
}
LOAD_FORMATS = ("auto", *_READERS, "dummy")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: Path, load_format: str = "auto", *, seed: int = 0, context: int | None = None) -> Checkpoint:
    """Open a local file or folder; weights are mapped, not read.

    Args:
        path: A ``.gguf`` or ``.safetensors`` file, or a folder that holds either.
        load_format: ``auto``, or one of the others to insist on; ``dummy`` reads the configuration only.
        seed: Of dummy weights.
        context: Longest sequence that will be run, where it is to be less than the model's own: some rotary embeddings
            are chosen by it.

    Raises:
        SageLLMError: ``MODEL_NOT_FOUND`` when nothing that can be read is there, ``INVALID_REQUEST`` when it is not
            sound, ``UNSUPPORTED`` when it asks for what is not offered (pickles among it).
    """
    if load_format not in LOAD_FORMATS:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"load_format is {load_format!r}; known are {', '.join(LOAD_FORMATS)}",
            "load_format",
        )
    checkpoint = _open(path, load_format, seed)
    if context is not None:
        checkpoint.config = checkpoint.config.run_to(context)
    return checkpoint


def _open(path: Path, load_format: str, seed: int) -> Checkpoint:
    if load_format == "dummy":
        return DummyCheckpoint(read_config(path), seed, path)
    kind, place = locate(path)
    if load_format not in ("auto", kind):
        kind, place = load_format, path if load_format != "gguf" else _only_gguf(path)
    return _READERS[kind](place)


def read_config(path: Path) -> ModelConfig:
    """The configuration alone, of a file or folder that may lack weights.

    Raises:
        SageLLMError: As :func:`open_checkpoint`.
    """
    if path.is_dir() and (path / "config.json").is_file():
        return read_hf_config(path)
    kind, place = locate(path)
    return read_gguf_config(GGUFFile(place)) if kind == "gguf" else read_hf_config(place.parent)


def locate(path: Path) -> tuple[str, Path]:
    """Which reader ``path`` needs, and the file or folder to give it.

    Raises:
        SageLLMError: As :func:`open_checkpoint`.
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.exists():
        raise not_a_checkpoint(path, "no such file or folder")
    if path.suffix in PICKLES:
        raise _pickled(path, path.name)
    if path.suffix == ".safetensors":
        return "safetensors", path
    if path.suffix == ".gguf" or _begins_as_gguf(path):
        return "gguf", path
    raise unsupported(path, "is neither GGUF nor safetensors; give a .gguf or .safetensors file, or a model's folder")


def _in_folder(folder: Path) -> tuple[str, Path]:
    if any(folder.glob("*.safetensors")):
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise unsupported(folder, "holds an adapter, not a model; give the folder of the model it was trained on")
        return "safetensors", folder
    if any(folder.glob("*.gguf")):
        return "gguf", _only_gguf(folder)
    pickles = sorted(
        file.name for suffix in PICKLES for file in folder.glob("*" + suffix) if file.name != "training_args.bin"
    )
    if pickles:
        raise _pickled(folder, pickles[0])
    what = "a config.json but no weights" if (folder / "config.json").is_file() else "no model"
    raise not_a_checkpoint(folder, f"holds {what} (*.safetensors or *.gguf)")


def _only_gguf(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.gguf"))
    if not found:
        raise not_a_checkpoint(path, "holds no *.gguf")
    if len(found) > 1:
        raise corrupt(path, f"holds several GGUF files; name one of {', '.join(file.name for file in found)}")
    return found[0]


def _pickled(path: Path, name: str) -> SageLLMError:
    return unsupported(
        path,
        f"its weights are pickled ({name}), and a pickle can run any code when read; use a safetensors or GGUF form. If"
        " you trust it, transformers makes one of it:"
        " AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(ANOTHER)",
    )


def _begins_as_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from error
