"""The sandbox of chat templates: Jinja as transformers sets it up, with bounds on time and memory.

The template is a stranger's program. It cannot reach Python's objects. Rounds of loops and calls are counted.
Whatever it makes is weighed: no text or list may be too large, nor all of them together, also not within an
operator or a filter, before it ends. Whoever built the base can still make it slow, not hungry.
"""

from __future__ import annotations

import functools
import json
import re
import string
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_TEXT = 2**22  # weight of anything in a rendering, and of a number that may be a text's length
MOST_MADE = 2**28  # weight of all that a rendering makes
ITEM = 16  # weight of an item beside its own, in a list or a table
MOST_STEPS = 200_000  # rounds of loops, and calls
MOST_PRODUCT = 2**28  # of the lengths of two texts that are put into each other
WIDTH = re.compile(r"\d{5}|\*")  # in a format
FILLING = ("indent", "expandtabs")  # a number is put into the text, many times
ENDLESS = (
    "wordwrap",
    "pprint",
)  # take the square of a text's length in time; no template is for that
CONTAINERS = (list, tuple, set, frozenset, Mapping)


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
        self.filters = {
            name: self._bounded(name, each)
            for name, each in (self.filters | {"tojson": _to_json}).items()
            if name not in ENDLESS
        }
        self.globals = {
            "range": self.globals["range"],  # the sandbox's, which is short
            "dict": _table,
            "namespace": _Names,
            "raise_exception": _refuse,
            "strftime_now": _now,
        }

    def compiled(self, source: str) -> Template:
        """The template, its loops and concatenations counted. Raises TemplateError."""
        self._begin()
        tree = self.parse(source)
        _Counting().visit(tree)
        tree.set_environment(self)
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    def pieces(self, template: Template, values: dict[str, Any]) -> Iterator[str]:
        """What it writes, piece by piece. Raises BoundError, RefusedError and whatever it runs into."""
        self._begin()
        size = 0
        for piece in template.generate(values):
            size += len(piece)
            _verify_size(size)
            yield piece

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """As the sandbox calls, counted and bounded; names as Jinja has them."""
        __self._step()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        own, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(own, (str, bytes, int)):
            _verify_arguments(name, (own, *args, *kwargs.values()))
            if name in ("format", "format_map") and isinstance(own, str):
                _verify_fields(own)
            if name == "join" and args and not isinstance(own, int):
                args = (__self._parts(args[0], own), *args[1:])
        return __self.weighed(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, on numbers and texts of sizes that are bounded before."""
        self._step()
        if operator == "%" and isinstance(left, (str, bytes)):
            _verify_arguments("", (left, right))
            _verify_widths(left)
        if operator in ("*", "**"):
            _verify_product(left, right, power=operator == "**")
        return self.weighed(super().call_binop(context, operator, left, right))

    def weighed(self, value: Any) -> Any:
        """The value, counted among what the rendering makes."""
        self._steps.room -= _weight(value)
        if self._steps.room < 0:
            raise BoundError(f"it makes more than {MOST_MADE} characters in all")
        return value

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The rounds of a loop."""
        for item in items:
            self._step()
            yield item

    def joined(self, *parts: Any) -> str:
        """Jinja's ``~``."""
        return str(self.weighed("".join(self._parts(parts, ""))))

    def _begin(self) -> None:
        self._steps.left, self._steps.room = MOST_STEPS, MOST_MADE

    def _step(self) -> None:
        self._steps.left -= 1
        if self._steps.left < 0:
            raise BoundError(f"it takes more than {MOST_STEPS} steps")

    def _parts(self, items: Iterable[Any], between: str | bytes) -> Iterator[Any]:
        """What is to be put together, as long as that is short enough."""
        size = 0
        for item in items:
            size += len(between) + _weight(item)
            _verify_size(size)
            yield item if isinstance(item, (str, bytes)) else str(item)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter with sizes verified before and after."""
        first = int(hasattr(function, "jinja_pass_arg"))  # Jinja puts one before the filter's own

        @functools.wraps(function)  # keeps Jinja's mark of what its first argument is
        def bounded(*args: Any, **kwargs: Any) -> Any:
            values = (*args[first:], *kwargs.values())
            _verify_arguments(name, values)
            if name == "format":
                _verify_widths(values[0])
            if name == "join":
                between = args[first + 1] if len(args) > first + 1 else kwargs.get("d", "")
                counted = self._separated(args[first], str(between))
                args = (*args[:first], counted, *args[first + 1 :])
            return self.weighed(function(*args, **kwargs))

        return bounded

    @staticmethod
    def _separated(items: Iterable[Any], between: str) -> Iterator[Any]:
        """The same for Jinja's `join`, which may take an attribute of every item."""
        size = 0
        for item in items:
            size += len(between) + _weight(item)
            _verify_size(size)
            yield item


class _Counting(NodeTransformer):
    """Has loops, and what makes values, go through the sandbox; a template cannot name what they go through.

    The names of methods are Jinja's.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _call("counted", [node.iter], node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("weighed", [node], node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("weighed", [node], node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("weighed", [node], node.lineno) if node.ctx == "load" else node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_call("weighed", [_constant(part)], part.lineno) for part in node.nodes]
        return node


def _call(name: str, arguments: Sequence[nodes.Node], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(function, list(arguments), [], None, None, lineno=line)


def _constant(node: nodes.Expr) -> nodes.Expr:
    return (
        nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node
    )


class _Names(Namespace):
    """What a template may write to. Shown it is short, whatever it holds."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training: here its body stands for itself."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _verify_arguments(name: str, values: tuple[Any, ...]) -> None:
    """Those of a method, with its object, or of a filter."""
    long = [value for value in values if isinstance(value, (str, bytes, *CONTAINERS))]
    lengths = [_weight(value) for value in long] if len(long) > 1 else [len(item) for item in long]
    for value in values:
        if isinstance(value, int):
            _verify_size(value)
            lengths += [value] if name in FILLING else []
    largest = sorted(lengths, reverse=True)[:2]
    _verify_size(max(largest, default=0))
    if len(largest) > 1 and largest[0] * largest[1] > MOST_PRODUCT:
        raise BoundError("it puts long texts into one another")


def _verify_product(left: Any, right: Any, *, power: bool) -> None:
    if power:
        if not all(isinstance(x, (int, float)) and abs(x) < 1000 for x in (left, right)):
            raise BoundError("it takes powers of large numbers")
        return
    for many, times in ((left, right), (right, left)):
        if hasattr(many, "__len__") and isinstance(times, int):
            _verify_size(len(many) * times)


def _verify_widths(form: str | bytes) -> None:
    text = form if isinstance(form, str) else form.decode("latin-1")
    if WIDTH.search(text):
        raise BoundError("it fills texts up to a great width")


def _verify_fields(form: str) -> None:
    """Of ``str.format``: a width may also come from another field."""
    for _, _, filling, _ in string.Formatter().parse(form):
        if filling and "{" in filling:
            raise BoundError("it computes the width of a field")
        _verify_widths(filling or "")


def _weight(value: Any) -> int:
    """Characters, with those of all that is in it. Raises BoundError before it has looked at too many."""
    total, rest = 0, [value]
    while rest:
        item = rest.pop()
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 8
        elif isinstance(item, CONTAINERS):
            total += ITEM * (len(item) + 1)
            _verify_size(total)
            rest.extend(item)
            rest.extend(item.values() if isinstance(item, Mapping) else ())
        _verify_size(total)
    return total


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
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers, unlike Jinja, writes it: no character is escaped for HTML."""
    step = indent if isinstance(indent, int) or indent is None else len(indent)
    _verify_size((step or 0) * MOST_STEPS)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces, size = [], 0
    for piece in encoder.iterencode(value):  # lines begin with as many blanks as they lie deep
        size += len(piece)
        _verify_size(size)
        pieces.append(piece)
    return "".join(pieces)
