"""PEFT methods by name: what ``[adapter] method`` may say. (P-2.1)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protocol.methods.base import Method, Settings
from protocol.methods.hybrid import Hybrid, HybridSettings
from protocol.methods.single import MEMBERS, SINGLE, reader_among
from protocol.misspelling import nearest
from protocol.variants import variants

METHODS: dict[str, Method[Any]] = SINGLE | {Hybrid.name: Hybrid.of(HybridSettings())}
FULL_RANK = "its change of a weight has full rank, which no slot of the answering graph holds"
TAKEN_OUT = (
    "it begins with a part of the base's weights taken out, which codes cannot give up: use `lora`"
)
NEARBY = "it is not there yet; the nearest is `{}`"
NOT_HERE = {
    "oft": FULL_RANK,
    "boft": FULL_RANK,
    "fourierft": FULL_RANK,
    "c3a": FULL_RANK,
    "mora": FULL_RANK,
    "randlora": FULL_RANK,
    "road": "it turns pairs of a linear's outputs, and a slot scales each alone; the nearest is `ia3`",
    **dict.fromkeys(("pissa", "olora", "loftq"), TAKEN_OUT),
    "hra": NEARBY.format("lora"),
}
# By a name in lower case what to do instead: of what there is not, and of what has another name here.
REFUSED = NOT_HERE | {
    name: reason for method in METHODS.values() for name, reason in method.elsewhere.items()
}

if TYPE_CHECKING:
    Adapter = Settings
else:
    Adapter = variants(
        "method", {name: method.settings for name, method in METHODS.items()}, default="lora"
    )


def method_of(settings: Settings) -> Method[Any]:
    """The method that has these settings, as they leave it."""
    return METHODS[settings.method].fitted(settings)


def reader_of(settings: Settings) -> Method[Any]:
    """The method that reads what is published with these settings."""
    return method_of(settings).reading(METHODS)


def reader_for(config: Mapping[str, Any], *, source: str) -> Method[Any]:
    """The method that reads a PEFT folder with this ``adapter_config.json``. Raises ArtefactError."""
    return reader_among(METHODS, config, source=source).reading_of(config, source=source)


def refusal(name: object) -> str:
    """What to do instead of a method that there is not, or that is no member of a hybrid."""
    known = f"known methods: {', '.join(METHODS)}"
    if not isinstance(name, str):  # a document's value may be of any kind, also one without a hash
        return known
    if name in METHODS:
        return f"a hybrid's members are of {', '.join(MEMBERS)}"
    if reason := REFUSED.get(name.lower()):
        return reason
    near = nearest(name.lower(), METHODS, cutoff=0.4)
    return f"did you mean `{near}`?" if near else known
