"""Tables of a plan whose keys hang on one of them: ``[adapter]`` on its method.

Every variant is a model of its own, so a key that one of them gains changes no plan of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from itertools import islice
from operator import or_
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag
from pydantic.fields import FieldInfo

UNKNOWN = "unknown_variant"  # the kind of error


def variants(key: str, models: Mapping[str, type[BaseModel]], *, default: str) -> Any:
    """The type of a field that holds one of ``models``, told apart by ``key``; without it, ``default``."""

    def name(value: Any) -> Any:
        return value.get(key, default) if isinstance(value, dict) else getattr(value, key, None)

    kinds = [Annotated[model, Tag(tag)] for tag, model in models.items()]
    return Annotated[
        reduce(or_, kinds),
        Discriminator(
            name,
            custom_error_type=UNKNOWN,
            custom_error_message=f"its `{key}` is not known",
            custom_error_context={"key": key},
        ),
    ]


def variants_of(field: FieldInfo | None) -> dict[str, type[BaseModel]]:
    """The models of a field by their names, of a list those of its items; of any other field nothing."""
    annotation = field.annotation if field else None
    if in_list(field):
        (items,) = get_args(annotation)
        annotation = getattr(items, "__origin__", None)  # what is annotated there
    tagged = {}
    for kind in get_args(annotation):
        for mark in getattr(kind, "__metadata__", ()):
            if isinstance(mark, Tag):
                tagged[mark.tag] = get_args(kind)[0]
    return tagged


def in_list(field: FieldInfo | None) -> bool:
    """Whether a field is a list, whose items may be variants."""
    return get_origin(field.annotation if field else None) is list


def key_of(field: FieldInfo) -> str:
    """The key that tells the variants of a field apart."""
    (mark,) = (mark for mark in field.metadata if isinstance(mark, Discriminator))
    return str((mark.custom_error_context or {})["key"])


def untagged(model: type[BaseModel], path: list[str]) -> list[str]:
    """The place of an error without the names of variants that pydantic puts between its keys."""
    plain: list[str] = []
    known: type[BaseModel] | None = model
    rest = iter(path)
    for key in rest:
        plain.append(key)
        field = known.model_fields.get(key) if known else None
        if kinds := variants_of(field):
            if in_list(field):
                plain += islice(rest, 1)
            known = kinds.get(next(rest, ""))
        else:
            inner = field.annotation if field else None
            known = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    return plain
