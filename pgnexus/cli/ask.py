"""`pgnexus ask`: one request from the terminal, the whole way, and its answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any
from uuid import UUID

import typer

from pgnexus.app import App
from pgnexus.caller.handle import RequestHandle
from pgnexus.caller.stream import ResultStream
from pgnexus.cli import exits
from pgnexus.cli.interrupt import Interrupt
from pgnexus.cli.output import Output, summary
from pgnexus.cli.verb import Cli, verb
from pgnexus.errors import InvalidRequest, RequestError
from pgnexus.messages import LLMResult


@verb
async def ask(
    cli: Cli,
    text: Annotated[
        str | None,
        typer.Argument(help="The question; from stdin when it is - or left out.", show_default=False),
    ] = None,
    complexity: Annotated[
        str | None,
        typer.Option("--complexity", "-c", help="simple, medium, complex or auto; else by task type."),
    ] = None,
    task_type: Annotated[str | None, typer.Option(help="What kind of task: coder, architect, …")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model by name, instead of a route.")
    ] = None,
    provider: Annotated[str | None, typer.Option("--provider", "-p", help="A provider by name.")] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="A system message before the text.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of the answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 2.")] = None,
    top_p: Annotated[float | None, typer.Option(help="0 to 1.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="For answers that can be repeated, where the model can.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds until the request's deadline.")] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds before it may run.")] = None,
    priority: Annotated[str, typer.Option(help="interactive, standard or batch.")] = "interactive",
    agent_id: Annotated[str | None, typer.Option(help="Who asks, to find it again by.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key gives the same request.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it comes.")] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Store it, print its request_id, leave.")
    ] = False,
) -> int | None:
    """Ask, wait, print the answer.

    The answer goes to stdout, the line about it to stderr. When no nexus is alive, one runs in this process
    until the answer is there. Ctrl-C leaves the request as it is: it is stored.

    With --stream an answer that breaks off half-way begins anew, and a line on stderr says so. With --json each
    chunk is a document of its own, and the last one is the result.
    """
    question = _question(text)
    options: dict[str, Any] = {
        "task_type": task_type, "provider": provider, "max_tokens": max_tokens, "temperature": temperature,
        "top_p": top_p, "seed": seed, "stop": stop or None, "delay": delay, "priority": priority,
        "agent_id": agent_id, "idempotency_key": idempotency_key, "complexity": complexity,
        "stream": stream or None,
    }  # fmt: skip
    if timeout is not None:
        options["timeout"] = timeout
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    with Interrupt.handled() as interrupt, cli.output.working("starting") as working:
        app = App(cli.settings(), nexus=False if no_wait else None, report=working)
        interrupt.on_second(app.hurry)
        await app.start()
        try:
            first = model or complexity or app.service.determine_complexity_for_task(task_type or "")
            handle = await app.service.enqueue(first, messages, **options)
            if no_wait:
                return _told(cli.output, handle)
            working("waiting for the answer")
            if stream:
                return await _print_stream(
                    cli.output, app.service.resume(handle.request_id), interrupt, working
                )
            return await wait_and_print(cli.output, handle, interrupt, working)
        finally:
            await app.stop()


async def wait_and_print(
    output: Output,
    handle: RequestHandle,
    interrupt: Interrupt,
    working: Callable[[str], None],
    timeout: float | None = None,
) -> int:
    """Wait for a stored request and print what comes; the exit code. An interrupt ends only the wait."""
    try:
        found = await interrupt.unless(handle.result(timeout))
        working("")
    except RequestError as error:
        if output.json and error.result is not None:
            output.document(error.result.model_dump(mode="json"))
        raise
    if found is None:
        return _left(output, handle.request_id)
    print_result(output, found)
    return exits.OK


async def _print_stream(
    output: Output, stream: ResultStream, interrupt: Interrupt, working: Callable[[str], None]
) -> int:
    """Print an answer while it comes; the exit code."""
    line_is_open = False

    async def read() -> LLMResult:
        nonlocal line_is_open
        async for chunk in stream:
            working("")
            if output.json:
                output.document({"request_id": str(stream.request_id), **asdict(chunk)})
            elif chunk.discard:
                output.piece("\n")
                line_is_open = False
                output.say("[warn]the answer broke off; it begins anew[/warn]")
            elif chunk.text:
                output.piece(chunk.text)
                line_is_open = True
        return await stream.result()

    try:
        found = await interrupt.unless(read())
    except RequestError as error:
        if output.json and error.result is not None:
            output.document(error.result.model_dump(mode="json"))
        raise
    finally:
        working("")
        if line_is_open:
            output.piece("\n")
    if found is None:
        return _left(output, stream.request_id)
    print_result(output, found, text=False)
    return exits.OK


def _left(output: Output, request_id: UUID) -> int:
    output.say(
        "[warn]no longer waiting.[/warn] The request is stored and goes on; get its answer by\n"
        f"  pgnexus result {request_id} --wait"
    )
    return exits.INTERRUPTED


def print_result(output: Output, result: LLMResult, *, text: bool = True) -> None:
    """The answer, unless its text is printed already, and a line about it."""
    if output.json:
        output.document(result.model_dump(mode="json"))
        return
    if text:
        output.text(result.text)
    for call in result.tool_calls:
        function = call.get("function") or {}
        output.text(f"{function.get('name')}({function.get('arguments')})")
    output.say(f"[quiet]{summary(result)}[/quiet]")


def _question(text: str | None) -> str:
    if text is None and sys.stdin.isatty():
        raise InvalidRequest("there is nothing to ask: give a text, or pipe one in")
    return sys.stdin.read() if text in (None, "-") else str(text)


def _told(output: Output, handle: RequestHandle) -> int:
    if output.json:
        output.document({"request_id": str(handle.request_id), "created": handle.created})
    else:
        output.text(str(handle.request_id))
    return exits.OK
