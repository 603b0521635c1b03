"""Every key of an experiment with its values, default and meaning, from the models that validate it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from protocol.plan import Plan
from protocol.variants import in_list, key_of, variants_of
from simulations.experiment import Experiment

Json = dict[str, Any]
FILLED_IN = {"plan.base", "plan.head", "plan.start"}  # by the simulation
HEAD = """# Every key of an experiment

Written by `fedge plan keys > docs/experiment-keys.md` from the models that read the file; a test compares.
What has no default must be given, but for `plan.name` and `plan.task.labels`: without them the
experiment's name and the labels of the rows are taken. A plan for real machines has the keys below
`plan` without that word, and `base.fingerprint`.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """``default`` is TOML, or empty for a key that must be given.

    ``choice``: the key and value that make its table this one of several, if there are several.
    """

    table: str
    choice: str
    about: str  # the table
    name: str
    values: str
    default: str
    meaning: str


def experiment_keys() -> list[Key]:
    """All of them, in the order in which an experiment is written."""
    return [*_keys(Experiment, ""), *_keys(Plan, "plan")]


def _keys(model: type[BaseModel], table: str, choice: str = "") -> Iterator[Key]:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    about = (model.__doc__ or "").partition("\n")[0]
    tables: list[tuple[type[BaseModel], str, str]] = []
    for name, entry in schema["properties"].items():
        field = model.model_fields[name]
        inner = field.annotation
        path = f"{table}.{name}".lstrip(".")
        kinds = {} if in_list(field) else variants_of(field)
        if kinds:
            key = key_of(field)
            tables += [(each, path, f'{key} = "{tag}"') for tag, each in kinds.items()]
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            tables.append((inner, path, ""))
        elif path not in {"plan", *FILLED_IN}:
            yield Key(
                table=table,
                choice=choice,
                about=about,
                name=name,
                values=_tables(field) or _values(entry, definitions),
                default=json.dumps(entry["default"], ensure_ascii=False)
                if "default" in entry
                else "",
                meaning=entry.get("description", ""),
            )
    for below, path, chosen in tables:
        if path not in FILLED_IN:
            yield from _keys(below, path, chosen)


def _tables(field: FieldInfo) -> str:
    """Of a field that is several tables: which there may be; of any other nothing."""
    kinds = variants_of(field) if in_list(field) else {}
    return f"tables, each of {', '.join(kinds)}" if kinds else ""


def _values(entry: Json, definitions: Json) -> str:
    if "$ref" in entry:
        return _values(definitions[entry["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in entry:
        return " or ".join(_values(each, definitions) for each in entry["anyOf"])
    if "const" in entry or "enum" in entry:
        options = entry["enum"] if "enum" in entry else [entry["const"]]
        return ", ".join(json.dumps(option) for option in options)
    kind = entry.get("type", "")
    if kind == "array":
        return f"a list: {_values(entry['items'], definitions)}"
    names = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
    }
    return names[kind] + _bounds(entry)


def _bounds(entry: Json) -> str:
    low = entry.get("minimum", entry.get("exclusiveMinimum"))
    high = entry.get("maximum", entry.get("exclusiveMaximum"))
    said = []
    if low is not None and entry["type"] == "integer" and "exclusiveMinimum" in entry:
        said.append(f"from {low + 1:g}")
    elif low is not None:
        said.append(f"{'above' if 'exclusiveMinimum' in entry else 'from'} {low:g}")
    if high is not None:
        below = "exclusiveMaximum" in entry
        said.append(f"{'below' if below else 'to'} {high:g}" if high < 1e15 else "")
    text = " ".join(filter(None, said))
    return f", {text}" if text else ""


def keys_document(keys: list[Key]) -> str:
    """The page in Markdown: a table of keys per table of the file."""
    lines = [HEAD]
    for table, choice in dict.fromkeys((key.table, key.choice) for key in keys):
        own = [key for key in keys if (key.table, key.choice) == (table, choice)]
        title = f"`[{table}]`" if table else "At the top"
        title += f" with `{choice}`" if choice else ""
        lines += [f"## {title}", "", own[0].about.replace("``", "`"), ""]
        lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{key.name}` | {_cell(key.values)} | {f'`{key.default}`' if key.default else ''} "
            f"| {_cell(key.meaning)} |"
            for key in own
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
