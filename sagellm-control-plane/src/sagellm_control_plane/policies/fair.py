"""Tenants share what is served, each by its weight, however much each of them asks for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping

from sagellm_control_plane.observing import Subject
from sagellm_protocol import ErrorCode, SageLLMError

from .base import Key, Policy, Scene

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What tokens count, as in the paper: an output token costs an engine more than a prompt's."""
REMEMBERED = 65536
"""Tenants without any request whose service is remembered."""


class Fair(Policy):
    """Virtual token counter (Sheng et al., OSDI 2024): the tenant served least so far is next.

    What a tenant is served is counted as it happens, prompts when they are placed and output as it comes. Two tenants
    that both wait differ in service, divided by weight, by no more than twice the larger of one request's prompt and
    of the output that can be under way. A tenant that was away is lifted to the least of those that wait: nobody saves
    up. Requests without a user are one tenant. Within a tenant the older is first.

    Args:
        weights: Share of each tenant beside others; 1 where none is given.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights: dict[str, float] = {}
        self.weigh(weights or {})
        self._served: OrderedDict[str, float] = OrderedDict()
        self._waiting: dict[str, int] = {}
        self._flying: dict[str, int] = {}
        self._floor = 0.0

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Share by these weights from now on.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for a weight that is not above zero.
        """
        for tenant, weight in weights.items():
            if not weight > 0:
                raise SageLLMError(
                    ErrorCode.INVALID_REQUEST, f"the weight of tenant {tenant!r} must be above 0 (got {weight!r})"
                )
        self._weights = dict(weights)

    def served(self, tenant: str) -> float:
        """Weighted tokens that a tenant was served, lifts included."""
        return self._served.get(tenant, 0.0)

    def lane(self, request: Subject) -> Hashable:
        """A lane a tenant."""
        return tenant_of(request)

    def rank(self, lane: Hashable, scene: Scene) -> Key:
        """What it was served."""
        assert isinstance(lane, str)
        return (self.served(lane),)

    def key(self, request: Subject, scene: Scene) -> Key:
        """Order of arrival."""
        return (request.number,)

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return "fair: the tenant served least so far, then order of arrival"

    def queued(self, request: Subject, now: float) -> None:
        """Lift a tenant that was away."""
        tenant = tenant_of(request)
        if not self._waiting.get(tenant):
            least = min((self.served(other) for other in self._waiting), default=self._floor)
            self._served[tenant] = max(self.served(tenant), least)
            self._served.move_to_end(tenant)
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1

    def dropped(self, request: Subject, now: float) -> None:
        """It waits no longer."""
        self._unqueue(tenant_of(request))

    def placed(self, request: Subject, row: int, now: float) -> None:
        """Its prompt is served."""
        tenant = tenant_of(request)
        self._charge(tenant, PROMPT_WEIGHT * request.prompt_tokens)
        self._flying[tenant] = self._flying.get(tenant, 0) + 1
        self._unqueue(tenant)

    def produced(self, request: Subject, row: int, tokens: int, now: float) -> None:
        """So much of its output is served."""
        self._charge(tenant_of(request), OUTPUT_WEIGHT * tokens)

    def left(self, request: Subject, row: int, now: float) -> None:
        """It will be served no more."""
        tenant = tenant_of(request)
        count = self._flying.get(tenant, 0) - 1
        if count > 0:
            self._flying[tenant] = count
        else:
            self._flying.pop(tenant, None)
            self._forget()

    def _charge(self, tenant: str, tokens: float) -> None:
        self._served[tenant] = self.served(tenant) + tokens / self._weights.get(tenant, 1.0)

    def _unqueue(self, tenant: str) -> None:
        left = self._waiting.get(tenant, 0) - 1
        if left > 0:
            self._waiting[tenant] = left
        elif self._waiting.pop(tenant, None) is not None:
            # Where all are away, the one that left last is the mark for whoever comes.
            self._floor = self.served(tenant)

    def _forget(self) -> None:
        while len(self._served) > REMEMBERED + len(self._waiting) + len(self._flying):
            tenant = next(iter(self._served))
            if tenant in self._waiting or tenant in self._flying:
                self._served.move_to_end(tenant)
            else:
                del self._served[tenant]


def tenant_of(request: Subject) -> str:
    """Whose a request is; the empty string where it does not say."""
    return request.user or ""
