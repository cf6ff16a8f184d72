"""Where a checkpoint's chat template runs: jinja2's sandbox, and a budget of steps, characters and seconds.

jinja2 keeps a template from reaching Python. It does not keep it from looping or from doubling a text, so every loop,
call, output and operation that makes a value is paid for here, before it is done where it may be large.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

from rtp_llm.errors import ConfigError

MAX_CHARACTERS = 1 << 20  # of one value, beyond what the messages have
_MAX_MADE = 1 << 29  # characters of all values together
_MAX_STEPS = 100_000  # of range()
_MAX_ROUNDS = 1_000_000  # of all loops
_MAX_GROWN = 1 << 26  # characters that one operation might make in the worst case
_SECONDS = 2.0
_PLACE = 16  # characters that a place in a list counts for, which bounds the counting too
# No template can write this name.
BUDGET = " budget"
_COUNTED, _PAID = " counted", " paid"
_GROWING_METHODS = frozenset(
    ("center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "translate", "zfill")
)
_GROWING_FILTERS = (
    "batch", "center", "format", "indent", "join", "pprint", "replace", "slice", "string", "tojson", "urlize",
    "wordwrap", "xmlattr",
)  # fmt: skip
_WIDTH = re.compile(r"\{[^{}]*(\d{6}|\{)|%[-+ #0]*(\d{6}|\*)")


class Budget:
    """What one rendering may use; ValueError says what there was too much of."""

    def __init__(self, num_characters: int) -> None:
        self._most = num_characters + MAX_CHARACTERS
        self._left = _MAX_MADE
        self._rounds = _MAX_ROUNDS
        self._steps = _MAX_STEPS
        self._end = time.monotonic() + _SECONDS

    def range(self, *arguments: int) -> range:
        """range(), of so many steps in all."""
        steps = range(*arguments)
        self._steps -= len(steps)
        if self._steps < 0:
            raise ValueError(f"it loops over {_MAX_STEPS} times")
        return steps

    def rounds(self, count: int) -> None:
        """Rounds of a loop, or calls."""
        self._rounds -= count
        if self._rounds < 0:
            raise ValueError(f"it loops over {_MAX_ROUNDS} times")
        if time.monotonic() > self._end:
            raise ValueError(f"it takes over {_SECONDS:g} seconds")

    def pay(self, size: int) -> None:
        """A value of so many characters."""
        self._left -= size
        if size > self._most or self._left < 0:
            raise ValueError(f"it makes over {MAX_CHARACTERS} characters of something, or over {_MAX_MADE} in all")
        self.rounds(1)

    def pay_for(self, value: Any) -> None:
        """The value, written out."""
        self.pay(_size(value, self._most))


def check_growth(value: Any, others: Iterable[Any]) -> None:
    """ValueError for what may get large where each character of `value` may become one of the others, or so many."""
    most = max(
        (abs(other) if isinstance(other, int) else _size(other, _MAX_GROWN) for other in others if other is not None),
        default=1,
    )
    if _size(value, _MAX_GROWN) * max(most, 1) > _MAX_GROWN:
        raise ValueError(f"it may make over {_MAX_GROWN} characters of something")


def check_format(text: str, values: Iterable[Any]) -> None:
    """The same of `{:9}` and `%9d`; no width may be long, or come as a value."""
    if _WIDTH.search(text):
        raise ValueError("it formats with a width of a million or more, or one that it is given")
    check_growth(text, [value for value in values if not isinstance(value, int)])


def _size(value: Any, most: int) -> int:
    """Characters of a value written out, about; no more are counted than `most` and some."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3 + 1
    children: Iterable[Any] = ()
    if isinstance(value, Mapping):
        children = (part for pair in value.items() for part in pair)
    elif isinstance(value, (list, tuple, set, frozenset)):
        children = value
    total = _PLACE
    for child in children:
        total += _PLACE + _size(child, most - total)
        if total > most:
            break
    return total


def _product(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """An operation, before it is done."""
    if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        budget.pay(len(left) + len(right))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        budget.pay(abs(right) * abs(left).bit_length())
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        budget.pay(left.bit_length() + right.bit_length())
    elif operator == "*":
        lengths = [len(side) for side in (left, right) if hasattr(side, "__len__")]
        counts = [side for side in (left, right) if isinstance(side, int)]
        budget.pay(lengths[0] * max(counts[0], 0) if lengths and counts else 0)
    elif operator == "%" and isinstance(left, str):
        check_format(left, right if isinstance(right, tuple) else (right,))


def environment() -> Any:
    """A new environment of jinja2's; render in it with a Budget under the name BUDGET. ConfigError without jinja2."""
    try:
        from jinja2 import ext, pass_context
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ConfigError("chat templates need jinja2: pip install 'rtp-llm[chat]'") from None

    class Sandbox(ImmutableSandboxedEnvironment):
        """Which makes a template pay."""

        intercepted_binops = frozenset(["*", "**", "+", "%"])
        concat = staticmethod(_concat)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _product(context[BUDGET], operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            budget = __context[BUDGET]
            budget.rounds(1)
            method = getattr(__obj, "__wrapped__", __obj)  # the sandbox has a `format` of its own
            own, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
            if isinstance(own, str) and name in _GROWING_METHODS:
                check = check_format if name.startswith("format") else check_growth
                check(own, [*args, *kwargs.values()])
            result = super().call(__context, __obj, *args, **kwargs)
            budget.pay_for(result)
            return result

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            return _priced(super()._parse(source, name, filename))

    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), ext.loopcontrols])
    del made.globals["lipsum"]
    made.filters[_COUNTED] = pass_context(_counted)
    made.filters[_PAID] = pass_context(_paid)
    return made


def _priced(tree: Any) -> Any:
    """A template's tree, in which loops, joined texts and outputs are paid for."""
    from jinja2 import nodes

    def priced(node: Any, name: str) -> Any:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    for loop in list(tree.find_all(nodes.For)):
        loop.iter = priced(loop.iter, _COUNTED)
    for written in [*tree.find_all(nodes.Concat), *tree.find_all(nodes.Output)]:
        written.nodes = [
            part if isinstance(part, nodes.TemplateData) else priced(part, _PAID) for part in written.nodes
        ]
    return tree


def _generation() -> Any:
    """{% generation %} marks what training masks; here it is what is inside it."""
    from jinja2 import ext, nodes

    class Generation(ext.Extension):
        """The tag, and its end."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


def guard(made: Any) -> None:
    """Check what goes into those filters of an environment in which it may grow."""
    from jinja2 import Environment
    from jinja2.nodes import EvalContext
    from jinja2.runtime import Context

    def guarded(function: Callable[..., Any], check: Callable[[Any, Iterable[Any]], None]) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            value, *others = (one for one in arguments if not isinstance(one, (Environment, EvalContext, Context)))
            check(value, [*others, *named.values()])
            return function(*arguments, **named)

        return run

    for name in _GROWING_FILTERS:
        made.filters[name] = guarded(made.filters[name], check_format if name == "format" else check_growth)


def _concat(parts: Iterable[str]) -> str:
    """What a macro or a block has written."""
    written = list(parts)
    if sum(map(len, written)) > _MAX_GROWN:
        raise ValueError(f"it makes over {_MAX_GROWN} characters of something")
    return "".join(written)


def _counted(context: Any, value: Any) -> Any:
    """What a loop goes over."""
    budget = context[BUDGET]
    if hasattr(value, "__len__"):
        budget.rounds(len(value) + 1)
        return value
    return _each(budget, value)


def _each(budget: Budget, value: Iterable[Any]) -> Iterator[Any]:
    for one in value:
        budget.rounds(1)
        yield one


def _paid(context: Any, value: Any) -> Any:
    context[BUDGET].pay_for(value)
    return value
