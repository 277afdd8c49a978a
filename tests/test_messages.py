"""The messages' forms: what is taken, what is refused, and the contract that says so."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from system import answered, running

from pgnexus import messages as wire
from pgnexus.errors import InvalidRequest
from pgnexus.messages import LLMRequest, LLMResult, complexity_for, new_request_id
from tools import wire_schema

PAGE = (Path(__file__).parent.parent / "docs" / "wire.md").read_text(encoding="utf-8")
NAME = "019a0c3e-8f60-7d3a-9c41-2b8f6f0f8a11"
HELLO = [{"role": "user", "content": "Hello"}]


def request(**fields) -> LLMRequest:
    return LLMRequest.model_validate({"request_id": NAME, "messages": HELLO} | fields)


def examples(kind: str) -> list[str]:
    found = re.findall(rf"^```json {kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found


class TestContract:
    def test_the_schema_is_the_codes(self):
        assert wire_schema.FILE.read_text(encoding="utf-8") == wire_schema.text()
        Draft202012Validator.check_schema(wire_schema.schema())

    @pytest.mark.parametrize(("kind", "model"), [("request", LLMRequest), ("result", LLMResult)])
    def test_the_pages_examples_are_messages(self, kind, model):
        validator = Draft202012Validator(
            {"$ref": f"#/$defs/{model.__name__}", "$defs": wire_schema.schema()["$defs"]}
        )
        for text in examples(kind):
            validator.validate(json.loads(text))
            assert model.model_validate_json(text).model_extra == {}

    @pytest.mark.parametrize("model", [LLMRequest, LLMResult])
    def test_the_page_names_every_field(self, model):
        assert [name for name in model.model_fields if f"`{name}`" not in PAGE] == []

    def test_the_page_names_every_queue_channel_task_type_and_error(self):
        channels = [value for name, value in vars(wire).items() if name.endswith("_CHANNEL")]
        words = [*wire.REQUEST_QUEUES.values(), wire.RESULT_QUEUE, *channels, *wire.TASK_COMPLEXITY]
        assert [word for word in words if f"`{word}`" not in PAGE] == []

    async def test_the_pages_sql_runs(self, database_url, llmock, db):
        async with running(database_url, llmock.base_url()):
            for text in re.findall(r"^```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
                async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
                    await connection.execute(text)
            assert await answered(db, "my_answers")


class TestRequests:
    def test_defaults(self):
        asked = request()
        assert (asked.v, asked.model, asked.provider, asked.priority) == (1, "auto", "auto", "standard")
        assert (asked.reply_to, asked.effective_complexity, asked.deadline) == ("ai_results", "medium", None)
        assert asked.model_dump(exclude_unset=True, exclude_none=True).keys() == {"request_id", "messages"}

    def test_unknown_fields_are_kept(self):
        asked = request(x_team="blue", messages=[{"role": "user", "content": "Hi", "x_mood": "fine"}])
        assert asked.model_dump()["x_team"] == "blue"
        assert asked.messages[0].model_dump()["x_mood"] == "fine"

    def test_tools_and_response_format_are_taken_as_text_in_its_order(self):
        text = '[{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}]'
        assert json.dumps(request(tools=text).tools) == text
        assert request(response_format='{"type": "text", "a": 2}').response_format == {"type": "text", "a": 2}

    @pytest.mark.parametrize(
        "fields",
        [
            {"v": 2},
            {"request_id": "x"},
            {"messages": []},
            {"messages": [{"role": "user"}]},
            {"messages": [{"role": "tool", "content": "x"}]},
            {"messages": [{"role": "user", "content": [{"text": "no type"}]}]},
            {"tools": "{"},
            {"reply_to": "Not A Queue"},
            {"deadline": "2030-01-01T00:00:00"},
            {"deadline": "2030-01-01"},
            {"deadline": 5},
            {"deadline": "1893456000"},
            {"temperature": float("nan")},
            {"temperature": 3},
            {"top_p": -0.1},
            {"max_tokens": 0},
            {"messages": [{"role": "user", "content": " \n"}]},
            {"messages": [{"role": "assistant", "content": ""}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
            {"model": "simple"},
            {"stop": []},
            {"seed": 2**63},
            {"seed": -(2**63) - 1},
            {"tool_choice": "never"},
            {"response_format": {"type": "xml"}},
            {"response_format": {}},
        ],
        ids=str,
    )
    def test_what_is_refused(self, fields):
        with pytest.raises(ValidationError):
            request(**fields)

    def test_what_looks_odd_and_is_taken(self):
        call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
        asked = request(
            messages=[
                *HELLO,
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "", "tool_call_id": "1"},
                {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "image_url"}]},
            ],
            seed=-(2**63),
            tool_choice={"type": "function", "function": {"name": "f"}},
        )
        assert len(asked.messages) == 4

    def test_a_deadline_has_its_offset(self):
        noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
        for text in ("2030-01-01T12:00:00Z", "2030-01-01T12:00:00.000+00:00", "2030-01-01 14:00+02:00"):
            assert request(deadline=text).deadline == noon
        assert request(deadline=noon).deadline == noon

    @pytest.mark.parametrize("kind", ["image_url", "input_image"])
    def test_images_are_seen(self, kind):
        assert request(messages=[{"role": "user", "content": [{"type": kind}]}]).has_images
        assert not request().has_images

    def test_a_task_type_stands_for_a_complexity(self):
        assert request(task_type="parser").effective_complexity == "simple"
        assert request(task_type="parser", complexity="complex").effective_complexity == "complex"
        assert complexity_for(None) == complexity_for("poetry") == "medium"


class TestResults:
    def test_the_message_is_whole_again(self):
        result = LLMResult(request_id=NAME, status="success", response="Hi")
        assert result.message == {"role": "assistant", "content": "Hi"}
        both = LLMResult(request_id=NAME, status="success", response="Hi", message={"refusal": None})
        assert both.message == {"role": "assistant", "content": "Hi", "refusal": None}
        own = LLMResult(
            request_id=NAME, status="success", response="Hi", message={"content": [{"type": "text"}]}
        )
        assert own.message["content"] == [{"type": "text"}]

    def test_cost_is_a_decimal_string_without_exponent(self):
        result = LLMResult(request_id=NAME, status="success", cost=Decimal("1E-8"))
        assert json.loads(result.model_dump_json())["cost"] == "0.00000001"
        assert LLMResult.model_validate_json(result.model_dump_json()).cost == Decimal("1E-8")

    def test_text_and_tool_calls(self):
        empty = LLMResult(request_id=NAME, status="failed")
        assert (empty.text, empty.tool_calls, empty.ok) == ("", [], False)

    @pytest.mark.parametrize(
        ("calls", "found"), [(5, []), ({"id": "1"}, []), (["no", {"id": "1"}], [{"id": "1"}])]
    )
    def test_of_tool_calls_of_an_odd_form_those_that_are_some(self, calls, found):
        told = LLMResult(request_id=NAME, status="success", message={"tool_calls": calls})
        assert told.tool_calls == found


def test_ids_are_uuids_of_version_7_in_the_order_of_time():
    ids = [new_request_id() for _ in range(100)]
    assert {(one.version, one.variant) for one in ids} == {(7, UUID(NAME).variant)}
    assert len(set(ids)) == 100
    stamps = [one.int >> 80 for one in ids]
    assert stamps == sorted(stamps)


def test_a_faulty_request_is_named_at_the_call_as_on_the_wire():
    from pgnexus.caller.draft import RequestDraft  # noqa: PLC0415
    from pgnexus.settings import Settings  # noqa: PLC0415

    with pytest.raises(InvalidRequest, match="temperature"):
        RequestDraft.make("simple", "Hello", Settings(), temperature=5)
