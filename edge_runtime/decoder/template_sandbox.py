"""The sandbox of chat templates: Jinja as transformers sets it up, with bounds on time and memory.

The template is a stranger's program. It cannot reach Python's objects; rounds of loops, calls, and what
operators, calls and filters make of long strings are bounded. Whoever built the base can still make it slow:
the bounds are for accidents and for templates that ask for a terabyte in a line.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_TEXT = 2**22  # characters of any text in a rendering, and of a number that may be one's length
MOST_STEPS = 200_000  # rounds of loops, and calls
MOST_PRODUCT = 2**28  # of the lengths of two texts that are put into each other
WIDTH = re.compile(r"\d{5}|\*")  # in a format


class BoundError(Exception):
    """A template that goes beyond what one may do."""


class RefusedError(TemplateError):
    """What a template says by ``raise_exception``: the messages are not for it."""


class Sandbox(ImmutableSandboxedEnvironment):
    """One per template; renderings of several threads count for themselves."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self._steps = threading.local()
        self.filters = {name: _bounded(each) for name, each in self.filters.items()}
        self.filters["tojson"] = _to_json
        self.globals = {
            "range": self.globals["range"],  # the sandbox's, which is short
            "dict": _table,
            "namespace": Namespace,
            "raise_exception": _refuse,
            "strftime_now": _now,
        }

    def compiled(self, source: str) -> Template:
        """The template, its loops and concatenations counted. Raises TemplateError."""
        tree = self.parse(source)
        _Counting().visit(tree)
        tree.set_environment(self)
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    def pieces(self, template: Template, values: dict[str, Any]) -> Iterator[str]:
        """What it writes, piece by piece. Raises BoundError, RefusedError and whatever it runs into."""
        self._steps.left = MOST_STEPS
        size = 0
        for piece in template.generate(values):
            size += len(piece)
            _verify_size(size)
            yield piece

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """As the sandbox calls, counted and bounded; names as Jinja has them."""
        __self._step()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        own = getattr(method, "__self__", None)
        if isinstance(own, str):
            _verify_arguments((own, *args, *kwargs.values()))
            if method.__name__ in ("format", "format_map"):
                _verify_format(own)
        return _verified(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, on numbers and texts of sizes that are bounded before."""
        self._step()
        if operator == "%" and isinstance(left, str):
            _verify_format(left)
        if operator in ("*", "**"):
            _verify_product(left, right, power=operator == "**")
        return _verified(super().call_binop(context, operator, left, right))

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The rounds of a loop."""
        for item in items:
            self._step()
            yield item

    def joined(self, *parts: Any) -> str:
        """Jinja's ``~``."""
        return str(_verified("".join(map(str, parts))))

    def _step(self) -> None:
        self._steps.left = left = getattr(self._steps, "left", MOST_STEPS) - 1
        if left < 0:
            raise BoundError(f"it takes more than {MOST_STEPS} steps")


class _Counting(NodeTransformer):
    """Has loops and concatenations go through the sandbox; a template cannot name what they go through.

    The names of methods are Jinja's.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _call("counted", [node.iter], node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)


def _call(name: str, arguments: Sequence[nodes.Node], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(function, list(arguments), [], None, None, lineno=line)


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training: here its body stands for itself."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with sizes verified before and after."""

    @functools.wraps(function)  # keeps Jinja's mark of what its first argument is
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _verify_arguments((*args, *kwargs.values()))
        return _verified(function(*args, **kwargs))

    return bounded


def _verify_arguments(values: tuple[Any, ...]) -> None:
    lengths = sorted((len(value) for value in values if isinstance(value, str)), reverse=True)
    if len(lengths) > 1 and lengths[0] * lengths[1] > MOST_PRODUCT:
        raise BoundError("it puts long texts into one another")
    for value in values:
        if isinstance(value, int):
            _verify_size(value)


def _verify_product(left: Any, right: Any, *, power: bool) -> None:
    if power:
        if not all(isinstance(x, (int, float)) and abs(x) < 1000 for x in (left, right)):
            raise BoundError("it takes powers of large numbers")
        return
    for many, times in ((left, right), (right, left)):
        if hasattr(many, "__len__") and isinstance(times, int):
            _verify_size(len(many) * times)


def _verify_format(text: str) -> None:
    if WIDTH.search(text):
        raise BoundError("it fills texts up to a great width")


def _verified(value: Any) -> Any:
    if isinstance(value, str):
        _verify_size(len(value))
    elif isinstance(value, int):
        _verify_size(value.bit_length())
    return value


def _verify_size(size: int) -> None:
    if size > MOST_TEXT:
        raise BoundError(f"it makes a text of more than {MOST_TEXT} characters")


def _refuse(message: object = "") -> NoReturn:
    raise RefusedError(str(message))


def _table(**items: Any) -> dict[str, Any]:
    return dict(items)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers, unlike Jinja, writes it: no character is escaped for HTML."""
    if isinstance(indent, int):
        _verify_size(indent * MOST_STEPS)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
