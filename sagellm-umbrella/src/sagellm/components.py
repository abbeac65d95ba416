"""Reaching a component that an installation may lack, and saying what to install where it does."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sagellm_protocol import ErrorCode, SageLLMError

_INSTALL = {
    "sagellm_backend": "pip install isagellm",
    "sagellm_core": "pip install isagellm",
    "sagellm_control_plane": "pip install isagellm",
    "sagellm_gateway": "pip install 'isagellm[gateway]'",
}


def component(module: str) -> Any:
    """Import a module of one of our components.

    Raises:
        SageLLMError: ``NOT_INSTALLED``, with what to install.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise SageLLMError(
            ErrorCode.NOT_INSTALLED, f"this needs {package}, which is not installed: {_INSTALL[package]}"
        ) from error
