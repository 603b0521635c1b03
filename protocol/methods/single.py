"""The methods that are no composition: a new one is a module here, and is found. (docs/adr/0099)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from protocol.errors import ArtefactError
from protocol.methods.base import Method, Settings
from protocol.variants import variants

PACKAGE = __name__.rpartition(".")[0]
ABOVE = ("single", "hybrid")  # modules of the package that stand on this registry


def _classes() -> Iterator[type[Method[Any]]]:
    """Of every module beside this one the classes that have a name of their own: what is shared has none."""
    for module in iter_modules(import_module(PACKAGE).__path__, f"{PACKAGE}."):
        if module.name.rpartition(".")[2] in ABOVE:
            continue
        for kind in vars(import_module(module.name)).values():
            own = isinstance(kind, type) and kind.__module__ == module.name
            if own and issubclass(kind, Method) and "name" in vars(kind):
                yield kind


def _found() -> dict[str, Method[Any]]:
    """One of each, sorted by name: on the order of files, or of this dict, nothing hangs."""
    found: dict[str, Method[Any]] = {}
    for kind in sorted(_classes(), key=lambda kind: kind.name):
        if kind.name in found:
            raise TypeError(
                f"two methods are called {kind.name!r}: {kind}, {type(found[kind.name])}"
            )
        found[kind.name] = kind()
    return found


SINGLE = _found()
# What a hybrid may have of them: a head is in every adapter, steps that cut ranks would cut everybody's,
# forms that hang on the base's weights would be blind to what others do to the same linears, and a first
# round of one member's own would be none of the others'.
MEMBERS = {
    name: method
    for name, method in SINGLE.items()
    if method.free and not (method.nested or method.reads_base or method.opening)
}

if TYPE_CHECKING:
    Member = Settings
else:
    Member = variants(
        "method", {name: method.settings for name, method in MEMBERS.items()}, default="lora"
    )


def reader_among(
    known: Mapping[str, Method[Any]], config: Mapping[str, Any], *, source: str
) -> Method[Any]:
    """The method that reads a PEFT folder with this ``adapter_config.json``. Raises ArtefactError."""
    for method in known.values():
        if method.reads(config) and not method.reader:
            return method
    raise ArtefactError(
        f"{source}: an adapter of PEFT's type {str(config.get('peft_type'))[:60]!r} is not known here",
        f"known types: {', '.join(sorted({method.peft_type for method in known.values()}))}",
    )
