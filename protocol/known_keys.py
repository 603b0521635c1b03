"""What an unknown key of a settings file may have meant: a key of another table, or a misspelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from protocol.misspelling import nearest


def variants(field: FieldInfo | None) -> dict[str, type[BaseModel]]:
    """The models of a table that is one of several, by the tag of each; of any other field none."""
    if field is None:
        return {}
    members: dict[str, type[BaseModel]] = {}
    several = [get_args(member) for member in get_args(field.annotation)]
    for member in (*several, (field.annotation, *field.metadata)):  # the last: a union of one
        model, *marks = member or (None,)
        for mark in marks:
            if isinstance(mark, Tag) and isinstance(model, type) and issubclass(model, BaseModel):
                members[mark.tag] = model
    return members


def without_tags(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that stand in the file: pydantic also names which of several models a table was read as."""
    return [part for part, is_tag in _walk(model, path)[2] if not is_tag]


def _walk(
    model: type[BaseModel], path: Sequence[str]
) -> tuple[type[BaseModel] | None, list[type[BaseModel]], list[tuple[str, bool]]]:
    """Along ``path`` below ``model``: the table there, what else it might be, and which parts are tags."""
    table: type[BaseModel] | None = model
    others: dict[str, type[BaseModel]] = {}
    marked: list[tuple[str, bool]] = []
    for part in path:
        is_tag = part in others
        marked.append((part, is_tag))
        if is_tag:
            table = others.pop(part)
            continue
        field = table.model_fields.get(part) if table else None
        table, others = _table(field), variants(field)
    return table, list(others.values()), marked


def _table(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model of a field that is a table, also of one that may be left out."""
    annotation = field.annotation if field else None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


# Keys of earlier formats, and why there are none such.
GONE = {
    "adapter.dropout": "programs of clients have no dropout: leave it out",
    "adapter.client_ranks": "all clients train the same tensors: leave it out",
    "start.rank": "write the plan again: `fedge plan continue RUN`",
    "start.scaling": "write the plan again: `fedge plan continue RUN`",
}


def key_hint(model: type[BaseModel], path: list[str], inner: dict[str, type[BaseModel]]) -> str:
    """Why there is no such key any more, where it belongs when it is one of another table, else what
    it may have meant. ``path`` is pydantic's."""
    key = path[-1]
    if gone := GONE.get(".".join(without_tags(model, path)[-2:])):
        return gone
    table, others, _ = _walk(model, path[:-1])
    for other in others:
        if key in other.model_fields:
            name, value = chosen_by(other)
            return f'it is a key of `{name} = "{value}"`'
    places = [*_places(model, key), *(
        f"{name}.{place}" for name, inner_model in inner.items() for place in _places(inner_model, key)
    )]  # fmt: skip
    if places:
        kind = "[{}]" if key in _tables(model, inner) else "`{}`"
        alternatives = " or ".join(kind.format(place) for place in places[:3])
        return f"it belongs elsewhere: write {alternatives}"
    keys = list(table.model_fields) if table else []
    near = nearest(key, keys)
    return f"did you mean `{near}`?" if near else f"known keys: {', '.join(keys)}"


def tag_hint(model: type[BaseModel], path: Sequence[str], tag: str) -> tuple[str, str]:
    """Of a table at ``path`` that is none of those it may be: the key that says which, and what to write."""
    _, others, _ = _walk(model, path)
    near = nearest(tag, [chosen_by(other)[1] for other in others])
    known = ", ".join(chosen_by(other)[1] for other in others)
    return chosen_by(others[0])[0], f'did you mean "{near}"?' if near else f"use one of: {known}"


def chosen_by(model: type[BaseModel]) -> tuple[str, str]:
    """The key that makes a table this one of several, and its value."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is Literal:
            return name, str(get_args(field.annotation)[0])
    raise TypeError(f"{model} has no key that tells it from others")


def _places(model: type[BaseModel], key: str, above: str = "") -> list[str]:
    """Every place of a key in the tables of a model."""
    places = []
    for name, field in model.model_fields.items():
        if name == key:
            places.append(above + name)
        # A table that may be left out is not where somebody looks for a key of every plan.
        tables = list(variants(field).values())
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables = [field.annotation]
        for table in tables:
            places += _places(table, key, f"{above}{name}.")
    return list(dict.fromkeys(places))


def _tables(model: type[BaseModel], inner: dict[str, type[BaseModel]]) -> set[str]:
    """Names of all tables."""
    names = set(inner)
    for table in (model, *inner.values()):
        fields = table.model_fields.items()
        names |= {name for name, field in fields if _table(field) or variants(field)}
    return names
