"""The methods that are no composition: a new one is a module here and a line of this registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protocol.errors import ArtefactError
from protocol.methods.adalora import Adalora
from protocol.methods.base import Method, Settings
from protocol.methods.bias import Bias
from protocol.methods.bottleneck import Bottleneck
from protocol.methods.dora import Dora
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
from protocol.methods.ravan import Ravan
from protocol.methods.sparse import Sparse
from protocol.methods.vera import Vera
from protocol.variants import variants

SINGLE: dict[str, Method[Any]] = {
    method.name: method
    for method in (
        Lora(),
        Dora(),
        Dylora(),
        LoraSb(),
        Ravan(),
        Vera(),
        Adalora(),
        Sparse(),
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
