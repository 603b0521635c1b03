"""PEFT methods by name: what ``[adapter] method`` may say. (P-2.1)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.errors import ArtefactError
from protocol.methods.base import Method, Settings
from protocol.methods.head import Head
from protocol.methods.loha import Loha
from protocol.methods.lora import Lora
from protocol.methods.lora_sb import LoraSb
from protocol.methods.prompt import Prompt
from protocol.misspelling import nearest
from protocol.variants import variants

METHODS: dict[str, Method[Any]] = {
    method.name: method for method in (Lora(), LoraSb(), Loha(), Prompt(), Head())
}
FULL_RANK = "its change of a weight has full rank, which no slot of the answering graph holds"
REFUSED = {
    "oft": FULL_RANK,
    "boft": FULL_RANK,
    "fourierft": FULL_RANK,
    "c3a": FULL_RANK,
    "fed-sb": "it is called `lora-sb`",
    "rslora": 'it is `method = "lora"` with `rank_stabilised = true`',
}

if TYPE_CHECKING:
    Adapter = Settings
else:
    Adapter = variants(
        "method", {name: method.settings for name, method in METHODS.items()}, default="lora"
    )
PUBLISHED = {  # what a PEFT folder's type is read as; the first of a type says how
    method.peft_type: method for method in reversed(METHODS.values())
}


def method_of(settings: Settings) -> Method[Any]:
    """The method that has these settings."""
    return METHODS[settings.method]


def published_method(peft_type: object) -> Method[Any]:
    """How a PEFT folder of this type is read. Raises ArtefactError."""
    try:
        return PUBLISHED[str(peft_type)]
    except KeyError:
        raise ArtefactError(
            f"an adapter of PEFT's type {str(peft_type)[:60]!r} is not known here",
            f"known types: {', '.join(PUBLISHED)}",
        ) from None


def refusal(name: object) -> str:
    """What to do instead of a method that there is not."""
    if isinstance(name, str) and (reason := REFUSED.get(name.lower())):
        return reason
    near = nearest(name, METHODS, cutoff=0.4) if isinstance(name, str) else None
    return f"did you mean `{near}`?" if near else f"known methods: {', '.join(METHODS)}"
