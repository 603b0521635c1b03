"""What a decoder is made of, wherever it comes from: a folder of Hugging Face's, or a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CodedWeight:
    """A matrix (out, in) as codes that its source holds already; blocks of 32 along ``in``.

    ``codes`` uint8 (out, blocks, 16 of 4 bits or 32 of 8), as ``protocol.codes`` packs them; ``scales`` and
    ``offsets`` float32 (out, blocks). weight = (code - 2^(bits - 1)) * scale + offset, no offset being 0.
    """

    bits: int
    codes: npt.NDArray[np.uint8]
    scales: Floats
    offsets: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderSource:
    """A model that has been read.

    ``config``: as Hugging Face's ``config.json``. ``tensors``: by Hugging Face's names
    (``model.layers.0.self_attn.q_proj.weight``), vectors as floats, matrices as floats or codes; values may
    be loaded when they are asked for. ``tokenizer``: text of ``tokenizer.json``. ``chat_template``: Jinja.
    ``begin`` and ``ends``: the tokens that begin and end texts. ``reasons``: choices that were made.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Floats | CodedWeight]
    tokenizer: str
    chat_template: str | None
    begin: int | None
    ends: tuple[int, ...]
    reasons: tuple[str, ...] = ()
