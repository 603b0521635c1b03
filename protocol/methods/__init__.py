"""PEFT methods by name: what ``[adapter] method`` may say. (P-2.1)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protocol.errors import ArtefactError
from protocol.methods.adalora import Adalora
from protocol.methods.base import Method, Settings
from protocol.methods.bias import Bias
from protocol.methods.bottleneck import Bottleneck
from protocol.methods.dylora import Dylora
from protocol.methods.head import Head
from protocol.methods.ia3 import Ia3
from protocol.methods.loha import Loha
from protocol.methods.lokr import Lokr
from protocol.methods.lora import Lora
from protocol.methods.lora_sb import LoraSb
from protocol.methods.norm import Norm
from protocol.methods.prefix import Prefix
from protocol.methods.prompt import Prompt
from protocol.methods.vera import Vera
from protocol.misspelling import nearest
from protocol.variants import variants

METHODS: dict[str, Method[Any]] = {
    method.name: method
    for method in (
        Lora(),
        Dylora(),
        LoraSb(),
        Vera(),
        Adalora(),
        Loha(),
        Lokr(),
        Ia3(),
        Bias(),
        Norm(),
        Bottleneck(),
        Prompt(),
        Prefix(),
        Head(),
    )
}
FULL_RANK = "its change of a weight has full rank, which no slot of the answering graph holds"
TAKEN_OUT = (
    "it begins with a part of the base's weights taken out, which codes cannot give up: use `lora`"
)
NEARBY = "it is not there yet; the nearest is `{}`"
REFUSED = {
    "oft": FULL_RANK,
    "boft": FULL_RANK,
    "fourierft": FULL_RANK,
    "c3a": FULL_RANK,
    "mora": FULL_RANK,
    "randlora": FULL_RANK,
    "road": "it turns pairs of a linear's outputs, and a slot scales each alone; the nearest is `ia3`",
    **dict.fromkeys(("pissa", "olora", "loftq"), TAKEN_OUT),
    "pet": NEARBY.format("bottleneck"),
    **dict.fromkeys(("dora", "hra"), NEARBY.format("lora")),
    **dict.fromkeys(("p-tuning", "p_tuning"), 'it is `method = "prompt"` with `encoder = "mlp"`'),
    **dict.fromkeys(
        ("prefix-tuning", "prefix_tuning"),
        'it is called `prefix`, with `encoder = "mlp"` as the paper trained it',
    ),
    "fed-sb": "it is called `lora-sb`",
    "bitfit": "it is called `bias`",
    **{
        name: f'it is `method = "bottleneck"` with `places = "{name}"`'
        for name in ("houlsby", "pfeiffer", "parallel")
    },
    "ln_tuning": "it is called `norm`",
    "prompt_tuning": "it is called `prompt`",
    "rslora": 'it is `method = "lora"` with `rank_stabilised = true`',
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
    method = method_of(settings)
    return METHODS[method.reader or method.name]


def reader_for(config: Mapping[str, Any], *, source: str) -> Method[Any]:
    """The method that reads a PEFT folder with this ``adapter_config.json``. Raises ArtefactError."""
    for method in METHODS.values():
        if method.reads(config) and not method.reader:
            return method
    raise ArtefactError(
        f"{source}: an adapter of PEFT's type {str(config.get('peft_type'))[:60]!r} is not known here",
        f"known types: {', '.join(sorted({method.peft_type for method in METHODS.values()}))}",
    )


def refusal(name: object) -> str:
    """What to do instead of a method that there is not."""
    if isinstance(name, str) and (reason := REFUSED.get(name.lower())):
        return reason
    near = nearest(name.lower(), METHODS, cutoff=0.4) if isinstance(name, str) else None
    return f"did you mean `{near}`?" if near else f"known methods: {', '.join(METHODS)}"
