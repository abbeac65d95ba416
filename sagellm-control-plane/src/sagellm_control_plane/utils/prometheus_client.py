"""Figures over an interval, asked of a Prometheus server that scrapes the gateway.

Metrics are those of the gateway (``sagellm:…``, labelled ``model_name``). What the server does not know is ``None``.
"""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any

import aiohttp

from sagellm_control_plane.legacy.errors import BadValue
from sagellm_protocol import ErrorCode, SageLLMError

ASK_S = 10.0
_INTERVAL = re.compile(r"(\d+(ms|[smhdwy]))+")


class PrometheusClient:
    """A client of one Prometheus server.

    Args:
        prometheus_url: Where it is, as ``http://host:9090``.
        namespace: Only series with this label ``namespace``.
        model_name: Only series of this model.

    Raises:
        ValueError: For what is no HTTP address.
    """

    def __init__(self, prometheus_url: str, namespace: str | None = None, model_name: str | None = None) -> None:
        if not prometheus_url.startswith(("http://", "https://")):
            raise BadValue(f"prometheus_url looks like http://host:9090 (got {prometheus_url!r})", "prometheus_url")
        self.prometheus_url = prometheus_url.rstrip("/")
        self.namespace = namespace
        self.model_name = model_name
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Let go of the server."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def query(self, query: str) -> float | None:
        """The value of an expression now; the sum if it has several series, ``None`` if it has none.

        Raises:
            SageLLMError: ``UNAVAILABLE`` when the server does not answer, ``INVALID_REQUEST`` when it refuses the
                expression, with its reason.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_S))
        try:
            async with self._session.get(f"{self.prometheus_url}/api/v1/query", params={"query": query}) as response:
                body: Any = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as failure:
            raise SageLLMError(
                ErrorCode.UNAVAILABLE, f"no Prometheus server can be asked at {self.prometheus_url}: {failure}"
            ) from failure
        if not isinstance(body, dict) or body.get("status") != "success":
            told = body.get("error") if isinstance(body, dict) else body
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST, f"{self.prometheus_url} refused the query {query!r}: {told}", "query"
            )
        return _value(body["data"])

    async def get_avg_time_to_first_token(self, interval: str) -> float | None:
        """Mean over an interval such as ``60s``, in seconds."""
        return await self._mean("time_to_first_token_seconds", interval)

    async def get_avg_inter_token_latency(self, interval: str) -> float | None:
        """Mean, in seconds."""
        return await self._mean("inter_token_latency_seconds", interval)

    async def get_avg_request_count(self, interval: str) -> float | None:
        """Requests that were answered within the interval."""
        return await self.query(self._sum("e2e_request_latency_seconds_count", interval))

    async def get_avg_input_sequence_tokens(self, interval: str) -> float | None:
        """Mean tokens of a prompt."""
        return await self._mean("request_prompt_tokens", interval)

    async def get_avg_output_sequence_tokens(self, interval: str) -> float | None:
        """Mean tokens of an answer."""
        return await self._mean("request_generation_tokens", interval)

    async def get_avg_request_duration(self, interval: str) -> float | None:
        """Mean time from a request to its whole answer, in seconds."""
        return await self._mean("e2e_request_latency_seconds", interval)

    async def _mean(self, name: str, interval: str) -> float | None:
        return await self.query(f"{self._sum(name + '_sum', interval)} / {self._sum(name + '_count', interval)}")

    def _sum(self, name: str, interval: str) -> str:
        if not _INTERVAL.fullmatch(interval):
            raise BadValue(f"an interval looks like 60s or 5m (got {interval!r})", "interval")
        labels = {"namespace": self.namespace, "model_name": self.model_name}
        given = ",".join(f"{label}={_quoted(value)}" for label, value in labels.items() if value is not None)
        return f'sum(increase({{__name__="sagellm:{name}"{"," if given else ""}{given}}}[{interval}]))'


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _value(data: Any) -> float | None:
    found = [data["result"]] if data["resultType"] == "scalar" else [one["value"] for one in data["result"]]
    values = [float(text) for _, text in found]
    total = math.fsum(values)
    return total if values and math.isfinite(total) else None
