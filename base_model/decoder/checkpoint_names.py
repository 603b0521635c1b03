"""A checkpoint's tensors as transformers' model has them, and linears as (out, in).

Checkpoints differ from what transformers makes of them: of a model without its output layer names lack their
beginning, GPT-NeoX's output layer has another name in files than in the model, and GPT-2's linears lie as
(in, out).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import Floats
from protocol.errors import ArtefactError

IN_FILES = {"gpt_neox": {"embed_out.weight": "lm_head.weight"}}


class NamedTensors(Mapping[str, Floats]):
    """Of ``tensors`` by transformers' names; a value is read anew whenever it is asked for.

    Raises ArtefactError for a tensor by two names.
    """

    def __init__(self, shape: DecoderShape, tensors: Mapping[str, Floats]) -> None:
        self._tensors, self._turned = tensors, turned_weights(shape)
        begin = shape.names.embeddings.partition(".")[0] + "."
        bare = not any(name.startswith(begin) for name in tensors)
        others = IN_FILES.get(shape.family, {})
        self._names = {
            others.get(
                name, f"{begin}{name}" if bare and not name.startswith("lm_head.") else name
            ): name
            for name in tensors
        }
        if twice := set(tensors) - set(self._names.values()):
            raise ArtefactError(
                f"{min(twice)} is in the checkpoint a second time, by another name",
                "fetch the checkpoint again, or load and save it with transformers",
            )

    def __getitem__(self, name: str) -> Floats:
        value = self._tensors[self._names[name]]
        return np.ascontiguousarray(value.T) if name in self._turned and value.ndim == 2 else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def turned_weights(shape: DecoderShape) -> frozenset[str]:
    """Names of the weights that transformers holds as (in, out)."""
    if not shape.transposed:
        return frozenset()
    return frozenset(f"{linear.path}.weight" for linear in shape.linears())
