"""What an unknown key of a settings file may have meant: a key of another table, or a misspelling."""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from protocol.misspelling import nearest
from protocol.variants import untagged, variants_of


def _known_keys(model: type[BaseModel], place: list[str]) -> list[str]:
    """The keys of the table at ``place`` below ``model``, names of variants included."""
    kinds: dict[str, type[BaseModel]] = {}
    for name in place:
        if name in kinds:
            model, kinds = kinds[name], {}
            continue
        if kinds:
            continue  # the number of one of several such tables
        field = model.model_fields.get(name)
        kinds = variants_of(field)
        table = _table(field)
        if table is None and not kinds:
            return []
        model = table or model
    return list(model.model_fields)


def _table(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model of a field that is a table, also of one that may be left out."""
    annotation = field.annotation if field else None
    kinds = () if variants_of(field) else (annotation, *get_args(annotation))
    for kind in kinds:
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


def key_hint(model: type[BaseModel], place: list[str], inner: dict[str, type[BaseModel]]) -> str:
    """Why there is no such key any more, where it belongs when it is one of another table, else what
    it may have meant. ``place`` has the names of variants between its keys."""
    path = untagged(model, place)
    if gone := GONE.get(".".join(path[-2:])):
        return gone
    if kinds := _variants_with(model, path):
        return f"it is a key of {' or '.join(kinds)}: leave it out, or choose one of these"
    places = [*_places(model, path[-1]), *(
        f"{table}.{place}" for table, inner_model in inner.items() for place in _places(inner_model, path[-1])
    )]  # fmt: skip
    if places:
        kind = "[{}]" if path[-1] in _tables(model, inner) else "`{}`"
        alternatives = " or ".join(kind.format(place) for place in places[:3])
        return f"it belongs elsewhere: write {alternatives}"
    keys = _known_keys(model, place[:-1])
    near = nearest(path[-1], keys)
    return f"did you mean `{near}`?" if near else f"known keys: {', '.join(keys)}"


def _variants_with(model: type[BaseModel], path: list[str]) -> list[str]:
    """The variants of the table at ``path`` that have its last key."""
    kinds: dict[str, type[BaseModel]] = {}
    for key in path[:-1]:
        if kinds and key.isdecimal():
            continue  # the number of one of several such tables
        inner = [kind.model_fields[key] for kind in kinds.values() if key in kind.model_fields]
        kinds = variants_of(inner[0] if inner else model.model_fields.get(key))
    return [f"`{name}`" for name, kind in kinds.items() if path[-1] in kind.model_fields]


def _places(model: type[BaseModel], key: str, above: str = "") -> list[str]:
    """Every place of a key in the tables of a model."""
    places = []
    for name, field in model.model_fields.items():
        if name == key:
            places.append(above + name)
        # A table that may be left out is not where somebody looks for a key of every plan.
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            places += _places(field.annotation, key, f"{above}{name}.")
        elif any(key in kind.model_fields for kind in variants_of(field).values()):
            places.append(f"{above}{name}.{key}")
    return places


def _tables(model: type[BaseModel], inner: dict[str, type[BaseModel]]) -> set[str]:
    """Names of all tables."""
    names = set(inner)
    for table in (model, *inner.values()):
        names |= {
            name
            for name, field in table.model_fields.items()
            if _table(field) or variants_of(field)
        }
    return names
