"""How hard a task looks: by its type, and by its messages when that tells nothing."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from system import put, running, sql, until

from pgnexus.caller.draft import RequestDraft
from pgnexus.complexity import complexity_for, estimate_complexity
from pgnexus.db.database import Database
from pgnexus.messages import LLMRequest, Message, new_request_id
from pgnexus.settings import Settings

EXAMPLES = [
    ("simple", "hi, how are you?"),
    ("simple", "What is the capital of France?"),
    ("simple", "Translate to French: good morning"),
    ("simple", "Classify the sentiment of this review as positive or negative: I loved it."),
    ("simple", "Extract all e-mail addresses from this text: write to a@b.example or c@d.example"),
    ("simple", "Is this spam? Answer yes or no. 'You won a prize'"),
    ("simple", "Fix the spelling: I has a apple"),
    ("simple", "Give me a title for a blog post about gardening"),
    ("simple", "Convert 12 miles to kilometres"),
    ("simple", "Extract the names as JSON. Must be an array. Without duplicates.\nAnn met Bob."),
    ("simple", "Summarize in one sentence: " + "The meeting was moved because the room was taken. " * 9),
    ("medium", "Summarize this report: " + "The quarter went well in most regions. " * 140),
    ("medium", "Write a function that reverses a string in Python"),
    ("medium", "def f(x):\n    return x + 1\n\nWhat does this print for f(2)? And for f(3)?"),
    (
        "medium",
        "Plan three days in Lisbon. It must fit 500 euros, should avoid museums, at least one day at sea.",
    ),
    ("medium", "Why is this slow?\n```sql\nselect * from a join b on a.id = b.id\n```"),
    ("medium", "Debug this: my loop never ends"),
    ("medium", "Compare these laptops. Which has the better battery? Which is lighter? Which would you buy?"),
    (
        "medium",
        "Write a cover letter for a nurse. It should mention night shifts, must not exceed 200 words.",
    ),
    ("medium", "Erkläre mir, wie ein Kühlschrank funktioniert."),
    ("complex", "Design the architecture of a distributed job queue that must survive the loss of a node."),
    ("complex", "Refactor this and explain the trade-offs:\n```python\nclass A:\n    pass\n```"),
    ("complex", "Prove that the square root of 2 is irrational, step by step."),
    ("complex", "Find the root cause of this deadlock, and a fix:\nTraceback (most recent call last):"),
    (
        "complex",
        "Implement a rate limiter:\n- it must be concurrent\n- at most 100 a second\n- without locks",
    ),
    ("complex", "Evaluate our migration from MySQL to PostgreSQL and the trade-offs of each step."),
    ("complex", "Entwirf die Architektur für ein verteiltes System und beweise, dass es konsistent ist."),
    ("complex", "Review this contract.\n" + "The party of the first part shall pay. " * 700),
]


def said(text: Any, role: Any = "user") -> Message:
    return Message(role=role, content=text)


@pytest.mark.parametrize(("complexity", "text"), EXAMPLES, ids=[text[:40] for _, text in EXAMPLES])
def test_examples(complexity: str, text: str) -> None:
    assert estimate_complexity([said(text)]) == complexity


class TestWhatElseCounts:
    QUESTION = "Which of these is the larger one?"

    def test_images(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        assert estimate_complexity([said(self.QUESTION)]) == "simple"
        assert estimate_complexity([said([{"type": "text", "text": self.QUESTION}, image])]) == "medium"

    def test_tools(self) -> None:
        assert estimate_complexity([said(self.QUESTION)], tools=True) == "medium"
        used = Message(role="tool", content="4", tool_call_id="1")
        assert estimate_complexity([said(self.QUESTION), used]) == "medium"

    def test_the_system_message_is_read_what_the_model_said_before_is_not(self) -> None:
        design = "Design the architecture of a distributed queue"
        assert estimate_complexity([said(design, "system"), said("Go on.")]) == "complex"
        assert estimate_complexity([said(design, "assistant"), said("Thanks!")]) == "simple"

    def test_the_middle_of_a_long_text_is_not_looked_at_its_ends_are(self) -> None:
        hard, filler = "Prove the theorem of the distributed algorithm.", "word " * 10_000
        middle, end = [said(filler + hard + filler)], [said(filler), said(filler + hard)]
        assert (estimate_complexity(middle), estimate_complexity(end)) == ("medium", "complex")


class TestAuto:
    HARD = "Design the architecture of a distributed job queue that must survive the loss of a node."

    @pytest.mark.parametrize(
        ("asked", "task_type", "text", "complexity"),
        [
            ("auto", None, HARD, "complex"),
            ("auto", None, "hi", "simple"),
            ("auto", "parser", HARD, "simple"),
            ("auto", "poetry", HARD, "complex"),
            (None, "poetry", HARD, "medium"),
            ("simple", "architect", HARD, "simple"),
        ],
    )
    def test_a_known_task_type_tells_else_the_messages(
        self, asked: Any, task_type: str | None, text: str, complexity: str
    ) -> None:
        request = LLMRequest(
            request_id=new_request_id(), messages=[said(text)], complexity=asked, task_type=task_type
        )
        assert request.effective_complexity == complexity

    @pytest.mark.parametrize(
        ("first", "options"),
        [("auto", {}), ("gpt-4o", {"complexity": "auto"}), ("auto", {"complexity": "auto"})],
    )
    def test_what_is_stored_is_no_auto(self, first: str, options: Any) -> None:
        draft = RequestDraft.make(first, self.HARD, Settings(), **options)
        stored = LLMRequest.model_validate_json(draft.body)
        assert (stored.complexity, stored.model) == ("complex", "gpt-4o" if first == "gpt-4o" else "auto")

    def test_a_complexity_beside_the_model_auto_holds(self) -> None:
        draft = RequestDraft.make("auto", self.HARD, Settings(), complexity="simple")
        assert LLMRequest.model_validate_json(draft.body).complexity == "simple"


def test_task_types() -> None:
    assert [complexity_for(one) for one in ("classifier", "coder", "qa", None)] == [
        *("simple", "medium", "complex", "medium")
    ]


class TestForOtherPrograms:
    """What does not come through our own door says `auto` on the wire, and the worker looks."""

    ROUTES: ClassVar = {"complex": ["openai/hard"], "medium": ["openai/usual"], "simple": ["openai/easy"]}

    @pytest.mark.parametrize(
        ("asked", "model"),
        [
            ({"content": TestAuto.HARD}, "hard"),
            ({"content": "Thanks!"}, "easy"),
            ({"content": "Thanks!", "task_type": "qa"}, "hard"),
        ],
    )
    async def test_the_sql_function_and_the_queue_take_it(
        self, database_url: str, db: Database, llmock: Any, asked: dict[str, str], model: str
    ) -> None:
        message = {
            "messages": [{"role": "user", "content": asked.pop("content")}],
            "complexity": "auto",
            **asked,
        }
        queued = {"request_id": str(new_request_id()), **message}
        async with running(database_url, llmock.base_url(), routes=self.ROUTES) as llm:
            [row] = await sql(db, "select * from pgnexus.enqueue(array[%s::jsonb])", json.dumps(message))
            await put(db, "ai_requests", json.dumps(queued))
            first = await llm.handle(row.request_id).result(timeout=20)
            stored = await llm.job_result(row.request_id)

            async def answered() -> bool:
                rows = await sql(db, "select request_id from pgnexus.job_results where status = 'success'")
                return len(rows) == 2

            await until(answered)
        assert first.ok
        assert stored.complexity == "auto"
        assert {record.body["model"] for record in llmock.requests} == {model}
