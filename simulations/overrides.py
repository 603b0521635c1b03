"""``--set a.b=c``: single keys of an experiment's document, changed before it is validated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protocol.documents import OddError, parse_toml
from protocol.errors import PlanError
from protocol.plan import Plan
from protocol.variants import key_of, variants_of


def override_all(document: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply each to the document, in place. Raises PlanError for what is not of the form ``a.b=value``."""
    for override in overrides:
        _drop_keys_of_another_variant(document, override)
    for override in overrides:
        _override(document, override)


def value_of(text: str) -> Any:
    """What ``--set`` makes of a value: TOML, and what is none a string, so that names need no quotes."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except OddError:
        return text


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise PlanError(f"--set {override}: not of the form a.b=value", "write --set plan.rounds=5")
    table = document
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            several = (
                "write the whole list, such as --set 'plan.adapter.members=[{method=\"lora\"}, …]'"
            )
            remedy = several if isinstance(table, list) else "correct the key"
            raise PlanError(f"--set {override}: `{part}` is no table", remedy)
    table[parts[-1]] = value_of(text.strip())


def _drop_keys_of_another_variant(document: dict[str, Any], override: str) -> None:
    """With ``plan.adapter.method`` go those keys of the file that the named method has not."""
    key, _, text = override.partition("=")
    plan, _, place = key.strip().partition(".")
    name, _, tag = place.partition(".")
    field = Plan.model_fields.get(name)
    kind = variants_of(field).get(str(value_of(text.strip())))
    if plan != "plan" or field is None or kind is None or tag != key_of(field):
        return
    tables = document.get("plan")
    table = tables.get(name) if isinstance(tables, dict) else None
    if isinstance(table, dict):
        others = {key for model in variants_of(field).values() for key in model.model_fields}
        for key in table.keys() & (others - kind.model_fields.keys()):
            del table[key]
