"""The model hub as a source: whether it can be reached, and download of single files over plain HTTPS.

Knows nothing of the catalogue's other sources. Catalogue files are public, so no token is ever sent.
"""

from __future__ import annotations

import http.client
import os
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from .catalogue import CatalogueModel
from .sources import Progress, Report, SourceUnavailableError

PROBE_SECONDS = 3.0
"""Longest that a machine without the hub is kept waiting, name resolution included."""
_STALL_SECONDS = 30.0
_CHUNK = 1 << 20
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_DEFAULT_ENDPOINT = "https://huggingface.co"


def endpoint() -> str:
    """Address of the hub: ``HF_ENDPOINT``, or Hugging Face's."""
    return (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


def file_url(repo: str, revision: str, path: str) -> str:
    """Address of one file of a repository."""
    return f"{endpoint()}/{repo}/resolve/{urllib.parse.quote(revision, safe='')}/{urllib.parse.quote(path)}"


def unreachable(url: str, seconds: float = PROBE_SECONDS, *, any_answer: bool = False) -> str | None:
    """Why ``url`` cannot be fetched, or ``None`` if it can.

    With ``any_answer``, a refusal counts as reached: whoever asks next may have the right to more.

    Answers within ``seconds`` whatever the network does: name resolution has no timeout of its own, so the question is
    put by a thread that is left behind if it hangs.
    """
    for variable in _OFFLINE:
        if os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}:
            return f"{variable} is set"
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_ask(url, seconds, any_answer)), name="hub-probe", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return f"{_host(url)} did not answer within {seconds:g} s"


def _ask(url: str, seconds: float, any_answer: bool) -> str | None:
    try:
        request = urllib.request.Request(url, method="HEAD", headers=_HEADERS)
        with urllib.request.urlopen(request, timeout=seconds):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return None if any_answer else f"{_host(url)} answered {error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{_host(url)} cannot be reached: {getattr(error, 'reason', None) or error}"


class HubSource:
    """Fetches catalogue models from the hub."""

    name = "hub"

    def fetch(self, model: CatalogueModel, into: Path, report: Report) -> None:
        """Probe with the first file, then download all.

        Raises:
            SourceUnavailableError: When the hub is out of reach, or fails half-way.
        """
        place = model.hub
        report(Progress("probing", self.name))
        reason = unreachable(file_url(place.repo, place.revision, model.files[0].path))
        if reason is not None:
            raise SourceUnavailableError(reason)
        done = 0
        for file in model.files:
            target = into / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            done = self._download(file_url(place.repo, place.revision, file.path), target, done, model.size, report)

    def _download(self, url: str, target: Path, done: int, total: int, report: Report) -> int:
        try:
            request = urllib.request.Request(url, headers=_HEADERS)
            with urllib.request.urlopen(request, timeout=_STALL_SECONDS) as answer, target.open("wb") as file:
                while piece := answer.read(_CHUNK):
                    done += len(piece)
                    # More than was announced is not the file; what is missing shows in its digest.
                    if done > total:
                        raise SourceUnavailableError(f"{_host(url)} sent more than the {total} bytes of the model")
                    file.write(piece)
                    report(Progress("downloading", self.name, done, total))
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise SourceUnavailableError(f"download from {_host(url)} broke off: {reason}") from error
        return done


_HEADERS = {"User-Agent": "isagellm"}


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc or url
