"""The steps of a flow built at run time: an action with its arguments, or a prompt that is a template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgnexus.errors import StepFailed
from pgnexus.flow.built.actions import PROMPT, Action
from pgnexus.flow.built.template import fill, names_in, text_of, whole_name
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.invoke import invoke
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.prompt import Answer, Prompt, deferral
from pgnexus.flow.define.step import Step
from pgnexus.flow.define.values import Misfit

ELEMENT = "element"
INPUT = "input"


class BuiltStep(Step):
    """A step whose placeholders are filled from its task's input."""

    async def _values(self, input: Any, flow_input: Any, context: Context, names: set[str]) -> dict[str, Any]:
        values: dict[str, Any] = {ELEMENT: input} if self.is_map else dict(input)
        if INPUT in names:
            root_single = not self.depends_on and not self.is_map
            values[INPUT] = flow_input if root_single else await context.flow_input()
        return values


class ActionStep(BuiltStep):
    """A step that calls an action; ``arguments`` are JSON values with placeholders, by parameter."""

    def __init__(self, slug: str, action: Action, arguments: Mapping[str, Any], **of_step: Any) -> None:
        super().__init__(
            slug,
            output=action.output,
            pure=action.pure,
            transactional=action.transactional,
            handler_name=action.name,
            **of_step,
        )
        self.kind = "map" if self.is_map else "single"
        self.action = action
        self.arguments = arguments
        self._names = set(names_in(dict(arguments)))

    async def call(self, input: Any, flow_input: Any, context: Context) -> Any:
        values = await self._values(input, flow_input, context, self._names)
        args: list[Any] = []
        named: dict[str, Any] = {}
        for one in self.action.parameters:
            if one.role == "context":
                value: Any = context
            elif one.name not in self.arguments or self._is_missing(one.name, values):
                value = one.substitute
            else:
                try:
                    value = one.codec.decode(fill(self.arguments[one.name], values), f"parameter {one.name}")
                except Misfit as error:
                    raise StepFailed(f"step {self.slug}: {error}") from None
            if one.by_position:
                args.append(value)
            else:
                named[one.name] = value
        return await invoke(self.action.handler, args, named, self.slug)

    def _is_missing(self, parameter: str, values: Mapping[str, Any]) -> bool:
        """Whether the argument is the output of a step that was skipped."""
        source = whole_name(self.arguments[parameter])
        return source is not None and source not in values

    def needs(self, dependency: str) -> bool:
        return any(
            one.name in self.arguments
            and whole_name(self.arguments[one.name]) == dependency
            and not one.can_be_missing
            for one in self.action.parameters
        )


class PromptStep(BuiltStep):
    """A step that asks a model what its template says."""

    kind = "llm"

    def __init__(
        self,
        slug: str,
        template: str,
        *,
        system: str | None,
        settings: Mapping[str, Any],
        returns: Answer,
        field: str | None,
        **of_step: Any,
    ) -> None:
        super().__init__(slug, handler_name=PROMPT, **of_step)
        self.template = template
        self.system = system
        self.settings = settings
        self.returns = returns
        self.field = field
        self._names = {*names_in(template), *names_in(system or "")}

    async def call(self, input: Any, flow_input: Any, context: Context) -> Later:
        values = await self._values(input, flow_input, context, self._names)
        system = None if self.system is None else text_of(self.system, values)
        try:
            prompt = Prompt(text_of(self.template, values), system=system)
            return deferral(prompt, self.settings, self.returns, self.field)
        except StepFailed as error:
            raise StepFailed(f"step {self.slug}: {error}") from None
