"""What is counted of requests and calls, and what Prometheus is told when it asks."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pgnexus.errors import InvalidSettings, RequestFailed
from pgnexus.messages import Usage
from pgnexus.telemetry import METERS, provider_call, request
from pgnexus.telemetry.counters import Histogram
from pgnexus.telemetry.meters import Meters
from pgnexus.telemetry.prometheus import registry
from pgnexus.watch import database_metrics
from pgnexus.watch.database_metrics import DatabaseMetrics
from pgnexus.watch.metrics_server import MetricsServer
from tests.system import running, sql, until

PAGE = (Path(__file__).parent.parent / "docs" / "observability.md").read_text(encoding="utf-8")
_ID = UUID(int=1)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(shown: CollectorRegistry) -> Samples:
    """What a scrape of it shows, by name and labels."""
    return parsed(generate_latest(shown).decode())


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def grown(before: Samples, after: Samples) -> dict[str, float]:
    """What has changed, as Prometheus writes it, but for times, which are never the same."""
    found = {}
    for (name, labels), value in after.items():
        if (more := value - before.get((name, labels), 0)) and "seconds" not in name:
            said = ",".join(f"{key}={text}" for key, text in labels)
            found[f"{name}{{{said}}}" if said else name] = round(more, 9)
    return found


async def told(before: Samples, *names: str) -> dict[str, float]:
    """What has changed as soon as each of these has."""

    async def there() -> dict[str, float] | None:
        found = grown(before, samples(registry()))
        return found if all(name in found for name in names) else None

    return await until(there)  # type: ignore[no-any-return]


class TestCounted:
    async def test_a_request_and_its_call(self, database_url, llmock):
        llmock.reply("Paris.")
        before = samples(registry())
        async with running(database_url, llmock.base_url()) as llm:
            result = await llm.call("simple", "Hello", model="gpt-4o", agent_id="reviewer")
            found = await told(before, "pgnexus_requests_settled_total{status=success}")
        assert found == {
            "pgnexus_requests_taken_total{lane=ai_requests}": 1,
            "pgnexus_requests_settled_total{status=success}": 1,
            "pgnexus_provider_calls_total{model=gpt-4o,outcome=success,provider=openai}": 1,
            "pgnexus_tokens_total{kind=prompt,model=gpt-4o,provider=openai}": result.usage.prompt_tokens,
            "pgnexus_tokens_total{kind=completion,model=gpt-4o,provider=openai}": result.usage.completion_tokens,
            "pgnexus_cost_dollars_total{model=gpt-4o,provider=openai}": float(result.cost),
        }
        assert METERS.in_flight.value() == 0
        assert METERS.queue_time.count("ai_requests") > 0

    async def test_retries_fallbacks_and_failures(self, database_url, llmock):
        llmock.fail(503, times=2).fail(400, times=None)
        row = {"base_url": llmock.base_url(), "needs_key": False}
        routes = {"simple": ["openai/gpt-4o", "groq/llama-3.3-70b-versatile"]}
        settings: dict[str, Any] = {"providers": {"openai": row, "groq": row}, "routes": routes}
        before = samples(registry())
        async with running(database_url, router_retries=1, **settings) as llm:
            with pytest.raises(RequestFailed):
                await llm.call("simple", "Hello")
            found = await told(before, "pgnexus_requests_settled_total{status=failed}")
        openai = "model=gpt-4o,outcome=provider_unavailable,provider=openai"
        assert found[f"pgnexus_provider_calls_total{{{openai}}}"] == 2
        assert found["pgnexus_provider_retries_total{model=gpt-4o,provider=openai}"] == 1
        [(name, fallbacks)] = [one for one in found.items() if "fallbacks" in one[0]]
        assert (fallbacks, "provider=groq" in name) == (1, True)

    async def test_an_answer_that_was_given_before_is_no_call(self, database_url, llmock):
        llmock.reply("Paris.")
        async with running(database_url, llmock.base_url()) as llm:
            await llm.call("simple", "Hello", cache=60)
            before = samples(registry())
            result = await llm.call("simple", "Hello", cache=60)
            found = await told(before, "pgnexus_requests_settled_total{status=success}")
        assert result.cached
        assert found == {
            "pgnexus_requests_taken_total{lane=ai_requests}": 1,
            "pgnexus_requests_settled_total{status=success}": 1,
            "pgnexus_saved_calls_total{how=cached}": 1,
        }

    def test_a_model_that_callers_make_up_is_no_label_until_it_answers(self):
        for name, outcome in (("made-up-1", "model_not_found"), ("made-up-2", "success")):
            with provider_call("openai", name) as call:
                call.ended(outcome)
        assert METERS.calls.value("openai", "made-up-1", "model_not_found") == 0
        assert METERS.calls.value("openai", "other", "model_not_found") >= 1
        assert METERS.calls.value("openai", "made-up-2", "success") == 1
        assert METERS.calls_in_flight.value("openai", "other") == 0

    def test_models_are_bounded_however_many_answer(self):
        meters = Meters()
        labels = {meters.label("openrouter", f"model-{n}", answered=True) for n in range(2000)}
        assert len(labels) == 501

    def test_no_label_names_an_agent_or_a_request(self):
        labels = {label for family in METERS.families for label in family.labels}
        assert labels == {"lane", "status", "reason", "how", "provider", "model", "outcome", "kind"}

    def test_a_call_that_is_left_without_a_word(self):
        counted = {
            outcome: METERS.calls.value("a", "other", outcome) for outcome in ("cancelled", "internal")
        }
        with pytest.raises(asyncio.CancelledError), provider_call("a", "b"):
            raise asyncio.CancelledError
        with pytest.raises(ValueError, match="our own"), provider_call("a", "b"):
            raise ValueError("our own fault")
        for outcome, count in counted.items():
            assert METERS.calls.value("a", "other", outcome) == count + 1
        assert METERS.calls_in_flight.value("a", "other") == 0

    def test_an_unknown_price_is_counted_and_costs_nothing(self):
        before = METERS.unpriced.value("a", "priceless")
        for price in (None, Decimal("0.5")):
            with provider_call("a", "priceless") as call:
                call.ended("success", usage=Usage(prompt_tokens=3, total_tokens=3), cost=price)
        assert METERS.unpriced.value("a", "priceless") == before + 1
        assert METERS.cost.value("a", "priceless") == 0.5

    def test_what_is_put_back_has_not_ended(self):
        before = {reason: METERS.returned.value(reason) for reason in ("retry", "park", "lost")}
        ended = METERS.settled.read()
        for reason in ("retry", "park", None):
            with request(_ID, 1, {"priority": "batch"}) as watched:
                if reason is not None:
                    watched.settled(reason)
        assert {reason: METERS.returned.value(reason) - count for reason, count in before.items()} == {
            "retry": 1, "park": 1, "lost": 1
        }  # fmt: skip
        assert METERS.settled.read() == ended

    def test_a_foreign_message_of_any_form_is_counted(self):
        for message in ("text", [], {"priority": ["odd"], "agent_id": 7, "traceparent": {}}):
            with request(_ID, 1, message) as watched:
                watched.settled("failed", {"status": "failed", "error": {"type": "invalid_request"}})

    def test_buckets_add_up(self):
        histogram = Histogram("x_seconds", "x", ("a",), buckets=(1, 2))
        for value in (0.5, 1, 1.5, 9):
            histogram.observe("b", value=value)
        assert list(histogram.read()) == [(("b",), [("1.0", 2), ("2.0", 3), ("+Inf", 4)], 12.0)]


@pytest.fixture
def collector(database_url):
    """A registry with what the database knows, asked anew at each scrape."""
    found = DatabaseMetrics(database_url, lease=60)
    yield found
    found.close()


def shown(collector: DatabaseMetrics) -> Samples:
    made = CollectorRegistry()
    made.register(collector)
    return samples(made)


class TestFromTheDatabase:
    async def test_queues_parked_and_instances(self, collector, db):
        await sql(db, "select pgmq.send('ai_requests_batch', '{}', n * 100) from generate_series(0, 2) n")
        await sql(
            db,
            """insert into nexus.parked (run_id, scope, lane, agent_id, since, step_slug)
               select gen_random_uuid(), s, 1, '', now(), 'route_llm'
               from unnest('{openai,agent:a,agent:b,flight:1,flight:2,flight:é}'::text[]) s""",
        )
        await sql(
            db,
            """insert into nexus.breakers (provider, model, reason, open_until)
               values ('openai', 'gpt-4o', 'failures', now() + interval '1 minute')""",
        )
        found = shown(collector)
        assert found["pgnexus_database_up", ()] == 1
        assert found["pgnexus_queue_depth", (("queue", "ai_requests_batch"),)] == 3
        assert found["pgnexus_queue_ready", (("queue", "ai_requests_batch"),)] == 1
        assert found["pgnexus_queue_oldest_seconds", (("queue", "ai_requests"),)] == 0
        parked = {labels[0][1]: count for (name, labels), count in found.items() if "parked" in name}
        assert parked == {"agent": 2, "flight": 3, "openai": 1}
        assert found["pgnexus_breakers_open", (("model", "gpt-4o"), ("provider", "openai"))] == 1
        assert found["pgnexus_instances", ()] == 0

    async def test_so_many_agents_wait_that_they_hide_nothing(self, collector, db):
        await sql(
            db,
            """insert into nexus.parked (run_id, scope, lane, agent_id, since, step_slug)
               select gen_random_uuid(), s, 1, '', now(), 'route_llm'
               from (select 'agent:' || n from generate_series(1, 300) n union all select 'openai') w (s)""",
        )
        parked = {
            labels[0][1]: count for (name, labels), count in shown(collector).items() if "parked" in name
        }
        assert parked == {"agent": 300, "openai": 1}
        [row] = await sql(db, "select count(*) as lines from nexus_api.watch_parked()")
        assert row.lines == 32

    async def test_a_queue_past_what_is_counted(self, collector, db):
        await sql(db, "select pgmq.send('ai_requests', '{}') from generate_series(1, 12345)")
        found = shown(collector)
        assert found["pgnexus_queue_depth", (("queue", "ai_requests"),)] == 12345
        assert found["pgnexus_queue_ready", (("queue", "ai_requests"),)] == 10000

    async def test_it_asks_once_for_many_scrapes(self, collector, db):
        shown(collector)
        await sql(db, "select pgmq.send('ai_requests', '{}')")
        assert shown(collector)["pgnexus_queue_depth", (("queue", "ai_requests"),)] == 0

    async def test_both_roles_may_ask(self, caller_url, nexus_url):
        for url in (caller_url, nexus_url):
            found = DatabaseMetrics(url, lease=60)
            assert shown(found)["pgnexus_database_up", ()] == 1
            found.close()

    async def test_a_database_that_is_away_and_comes_back(self, collector, database_url, db, monkeypatch):
        monkeypatch.setattr(database_metrics, "_KEEP", 0.0)
        assert shown(collector)["pgnexus_database_up", ()] == 1
        await sql(
            db,
            """select pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and pid <> pg_backend_pid()""",
        )
        assert shown(collector) == {("pgnexus_database_up", ()): 0}
        assert shown(collector)["pgnexus_database_up", ()] == 1

    async def test_an_outage_is_told_of_once(self, unused_tcp_port, monkeypatch, caplog):
        monkeypatch.setattr(database_metrics, "_KEEP", 0.0)
        found = DatabaseMetrics(f"postgresql://127.0.0.1:{unused_tcp_port}/nowhere", lease=60)
        for _ in range(3):
            assert shown(found) == {("pgnexus_database_up", ()): 0}
        found.close()
        assert caplog.text.count("the database does not answer") == 1

    async def test_a_database_that_hangs_does_not_hold_up_a_scrape(
        self, collector, database_url, monkeypatch
    ):
        monkeypatch.setattr(database_metrics, "_PATIENCE", 0.05)
        with psycopg.connect(database_url) as blocking:
            blocking.execute("lock table nexus.attempts")
            assert shown(collector) == {("pgnexus_database_up", ()): 0}


class TestServed:
    async def test_over_http(self, database_url):
        async with MetricsServer("127.0.0.1", 0, database_url, lease=60) as server:
            text = await asyncio.to_thread(fetch, server.url)
        assert parsed(text)["pgnexus_database_up", ()] == 1
        assert parsed(text)["process_resident_memory_bytes", ()] > 0
        assert "# TYPE pgnexus_provider_call_duration_seconds histogram" in text

    async def test_a_port_that_is_taken(self, database_url):
        async with MetricsServer("127.0.0.1", 0, database_url, lease=60) as server:
            port = int(server.url.split(":")[2].split("/")[0])
            with pytest.raises(InvalidSettings, match=f"metrics_port: cannot listen on 127.0.0.1:{port}"):
                async with MetricsServer("127.0.0.1", port, database_url, lease=60):
                    pass


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


class TestTheirPage:
    """docs/observability.md lists them all."""

    def test_those_of_a_process(self):
        for one in METERS.families:
            assert f"| `{one.name}` | {one.kind} | {', '.join(one.labels)} | {one.help} |" in PAGE

    async def test_those_of_the_database(self, collector):
        families = list(collector.collect())
        assert len(families) == 9
        for one in families:
            assert re.search(
                rf"^\| `{one.name}` \| [\w, ]*\| {re.escape(one.documentation)} \|$", PAGE, re.MULTILINE
            )

    def test_no_others(self):
        named = set(re.findall(r"pgnexus_[a-z_]+", PAGE))
        known = {one.name for one in METERS.families} | set(database_metrics.HELP)
        assert named <= known
