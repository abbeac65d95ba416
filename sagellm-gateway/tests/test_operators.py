"""What operators look at: health, readiness, metrics."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from live import WAIT_S, Live, live, mock_plane
from planes import ScriptedPlane
from sagellm_protocol import ErrorCode
from sagellm_protocol.testing import MockEngine
from scripts import error, says, start

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}]}


def client(gateway: Live) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, timeout=WAIT_S, trust_env=False)


def samples(http: httpx.Client) -> dict[str, float]:
    """Every sample by its name and labels, ``name{label=value}``."""
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_readiness_is_red_with_the_root_cause_once_the_engine_has_died_and_health_stays_green() -> None:
    with live(mock_plane(text="ok")) as gateway, client(gateway) as http:
        assert http.get("/ready").json()["status"] == "ready"
        engine: MockEngine = gateway.plane.engine

        async def kill() -> None:
            engine.die("out of memory")

        gateway.call(kill())
        red = http.get("/ready")
        assert red.status_code == 503
        assert "out of memory" in red.json()["reason"]
        assert red.json()["engines"][0]["state"] == "ERROR"
        assert http.get("/health").status_code == 200
        assert http.post(CHAT, json=BODY).status_code == 503


def test_readiness_is_red_once_no_heart_beats() -> None:
    late = ScriptedPlane(says(), heartbeat_age_s=20.0)
    with live(lambda: late, max_heartbeat_age_s=15.0) as gateway, client(gateway) as http:
        red = http.get("/ready")
        assert red.status_code == 503
        assert "20 s ago" in red.json()["reason"]
        late.stats["heartbeat_age_s"] = 1.0
        assert http.get("/ready").status_code == 200


def test_looking_costs_no_tokens() -> None:
    with live(mock_plane(text="ok")) as gateway, client(gateway) as http:
        for path in ("/health", "/ready", "/metrics", "/version", "/v1/models"):
            assert http.get(path).status_code == 200
        stats = gateway.call(gateway.plane.engine.stats())
        assert (stats.steps, stats.prompt_tokens) == (0, 0)


def test_metrics_count_what_happened() -> None:
    with live(mock_plane(text="abcd", itl_ms=2.0)) as gateway, client(gateway) as http:
        whole = http.post(CHAT, json={**BODY, "n": 2}).json()["usage"]["completion_tokens"]
        http.post(CHAT, json={**BODY, "n": 2, "stream": True})
        http.post(CHAT, json={**BODY, "max_tokens": 1})
        assert http.post(CHAT, json={**BODY, "model": "invented"}).status_code == 404
        assert http.post(CHAT, json={**BODY, "logprobs": True}).status_code == 400
        got = samples(http)
    by_model = "{model_name=mock}"
    by_engine = "{engine=e0,model_name=mock}"
    assert got[f"sagellm:time_to_first_token_seconds_count{by_model}"] == 3
    assert got[f"sagellm:e2e_request_latency_seconds_count{by_model}"] == 3
    # A choice waits once less than it has tokens: two requests of two choices each, and one of one token.
    assert got[f"sagellm:inter_token_latency_seconds_count{by_model}"] == 2 * whole - 4
    assert got[f"sagellm:request_time_per_output_token_seconds_count{by_model}"] == 2
    assert got[f"sagellm:request_generation_tokens_sum{by_model}"] == 2 * whole + 1
    assert got[f"sagellm:generation_tokens_total{by_engine}"] == 2 * whole + 1
    assert got["sagellm:request_success_total{finished_reason=stop,model_name=mock}"] == 4
    assert got["sagellm:request_success_total{finished_reason=length,model_name=mock}"] == 1
    assert got["sagellm:request_success_total{finished_reason=error,model_name=mock}"] == 1
    assert got["sagellm:request_success_total{finished_reason=error,model_name=unknown}"] == 1
    assert got[f"sagellm:num_requests_running{by_engine}"] == 0
    assert got[f"sagellm:kv_cache_usage_perc{by_engine}"] == 0
    assert got[f"sagellm:prefix_cache_queries_total{by_engine}"] >= got[f"sagellm:prefix_cache_hits_total{by_engine}"]
    assert got[f"sagellm:engine_up{by_engine}"] == 1
    assert got[f"sagellm:http_requests_total{{method=POST,route={CHAT},status=200}}"] == 3
    assert got[f"sagellm:http_requests_total{{method=POST,route={CHAT},status=404}}"] == 1
    assert not any("invented" in name for name in got)


def test_what_is_not_measured_has_no_series() -> None:
    with live(lambda: ScriptedPlane(says(), generation_tokens=5)) as gateway, client(gateway) as http:
        got = samples(http)
    labels = "{engine=e0,model_name=scripted}"
    assert got[f"sagellm:generation_tokens_total{labels}"] == 5
    assert f"sagellm:prompt_tokens_total{labels}" not in got
    assert f"sagellm:kv_cache_usage_perc{labels}" not in got


def test_drafts_are_counted_where_there_are_any() -> None:
    labels = "{engine=e0,model_name=scripted}"
    with live(lambda: ScriptedPlane(says(), drafted_tokens=40, accepted_tokens=31)) as gateway, client(gateway) as http:
        got = samples(http)
    assert got[f"sagellm:spec_decode_num_draft_tokens_total{labels}"] == 40
    assert got[f"sagellm:spec_decode_num_accepted_tokens_total{labels}"] == 31
    with live(lambda: ScriptedPlane(says(), steps=1)) as gateway, client(gateway) as http:
        assert f"sagellm:spec_decode_num_draft_tokens_total{labels}" not in samples(http)


def test_hits_are_told_apart_by_where_they_came_from() -> None:
    told = {
        "prefix_hit_tokens": 48,
        "host_hit_tokens": 16,
        "disk_hit_tokens": 0,
        "evicted_blocks": 7,
        "disk_kv_bytes": 9,
    }
    with live(lambda: ScriptedPlane(says(), **told)) as gateway, client(gateway) as http:
        got = samples(http)
    labels = "{engine=e0,model_name=scripted}"
    assert got[f"sagellm:prefix_cache_hits_total{labels}"] == 48
    assert got[f"sagellm:prefix_cache_host_hits_total{labels}"] == 16
    assert got[f"sagellm:prefix_cache_disk_hits_total{labels}"] == 0
    assert got[f"sagellm:prefix_cache_evictions_total{labels}"] == 7
    assert got[f"sagellm:kv_offload_disk_bytes{labels}"] == 9
    assert f"sagellm:kv_offload_host_bytes{labels}" not in got


def test_an_aborted_request_counts_as_aborted() -> None:
    plane = ScriptedPlane(says(start(), error(ErrorCode.CANCELLED)))
    with live(lambda: plane) as gateway, client(gateway) as http:
        assert http.post(CHAT, json=BODY).status_code == 499
        assert samples(http)["sagellm:request_success_total{finished_reason=abort,model_name=scripted}"] == 1


def test_callers_cannot_make_series_at_will() -> None:
    with live(mock_plane(text="ok")) as gateway, client(gateway) as http:
        before = len(samples(http))
        for number in range(20):
            http.get(f"/made-up/{number}")
            http.request(f"M{number}", "/health")
            http.get(f"/v1/models/made-up-{number}")
            http.post(CHAT, json={**BODY, "model": f"made-up-{number}"})
        after = samples(http)
    assert not any("made-up" in name for name in after)
    assert len(after) - before < 12
