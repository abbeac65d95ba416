"""The model store: models known by name, fetched once, checked, and kept on this machine.

Knows nothing of what is in the files (:mod:`sagellm_core.loading` does).
"""

from __future__ import annotations

from .catalogue import CATALOGUE, DEFAULT_EMBEDDING_MODEL, DEFAULT_MODEL, CatalogueFile, CatalogueModel
from .places import HOME_VARIABLE, home
from .pull import ModelEntry, PulledModel, list_models, pull
from .resolve import resolve
from .sources import CalledOffError, Progress, until

__all__ = [
    "CATALOGUE",
    "DEFAULT_EMBEDDING_MODEL",
    "DEFAULT_MODEL",
    "HOME_VARIABLE",
    "CalledOffError",
    "CatalogueFile",
    "CatalogueModel",
    "ModelEntry",
    "Progress",
    "PulledModel",
    "home",
    "list_models",
    "pull",
    "resolve",
    "until",
]
