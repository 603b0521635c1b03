"""Rows that a client may train as what a small network gives: P-tuning, and prefix tuning as it was proposed.

The network is of a client's training in one round (P-4.12); what is sent, summed and released are the rows.
P-tuning (Liu et al., arXiv 2103.10385) puts it before a soft prompt, prefix tuning (Li and Liang, arXiv
2101.00190, section 4.3) before a prefix; both drop it when training ends. (docs/adr/0072)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Generic, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from protocol.initial import ZEROS, Law
from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Method, Remark, Settings
from protocol.section import Rank

WIDTH = 512  # the narrower of the two that prefix tuning used (512 and 800)


class EncoderSettings(Settings):
    """Of a method that trains rows before a text."""

    encoder: Literal["none", "mlp"] = Field(
        default="none",
        description="mlp: a client trains two linears with a tanh between, and sends the rows that they give",
    )
    encoder_width: Rank = Field(
        default=WIDTH, description="features between the two linears of the encoder"
    )

    @field_validator("encoder_width")
    @classmethod
    def _is_of_an_encoder(cls, width: int, info: ValidationInfo) -> int:
        if info.data.get("encoder") == "none" and width != WIDTH:
            raise ValueError('it is the width of an encoder, and `encoder` is "none"')
        return width

    @property
    def unsaid(self) -> set[str]:
        """See :class:`Settings`."""
        return {"encoder", "encoder_width"} if self.encoder == "none" else set()


S = TypeVar("S", bound=EncoderSettings)


class Rows(Method[S], Generic[S]):
    """A method with one tensor beside the head: rows, one per token."""

    def encoder(
        self, settings: S, spec: TensorSpec, manifest: BaseManifest
    ) -> tuple[TensorSpec, ...]:
        """E (tokens, n), n the base's hidden size; W1 (n, w), b1 (w,), W2 (w, columns), b2 (columns,).

        Weights are uniform in ±1/sqrt(rows), inputs deviates: torch's start of linears and embeddings.
        """
        if settings.encoder == "none":
            return ()
        (tokens, columns), n, w = spec.shape, manifest.hidden_size, settings.encoder_width
        shapes: dict[str, tuple[tuple[int, ...], Law]] = {
            "inputs": ((tokens, n), Law("normal", 1.0)),
            "inner": ((n, w), Law("uniform", 1.0 / math.sqrt(n))),
            "inner_bias": ((w,), ZEROS),
            "outer": ((w, columns), Law("uniform", 1.0 / math.sqrt(w))),
            "outer_bias": ((columns,), ZEROS),
        }
        return tuple(
            TensorSpec(name=f"{spec.name}.{end}", shape=shape, part=spec.part, law=law)
            for end, (shape, law) in shapes.items()
        )

    def remarks(self, settings: S, manifest: BaseManifest) -> Iterator[Remark]:
        """How large an encoder is."""
        for spec in self.specs(settings, manifest):
            if count := sum(each.size for each in self.encoder(settings, spec, manifest)):
                cause = (
                    f"each client trains {count:,} numbers of a network of its own, and sends the "
                    f"{spec.size:,} that it gives"
                )
                remedy = "a lower adapter.encoder_width takes less memory"
                yield "note", "adapter.encoder", cause, remedy
