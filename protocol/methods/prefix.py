"""A prefix: keys and values of every layer before a text (Li and Liang, arXiv 2101.00190).

``prefix`` is (tokens, layers * 2 * kv_heads * head_size), peft's own table: of every layer its keys, then its
values, head by head. No position turns them. Only bases that write text have a cache to hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.decoder_manifest import DecoderManifest
from protocol.forms import PREFIX
from protocol.initial import Law
from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Remark
from protocol.methods.encoder import EncoderSettings, Rows
from protocol.methods.prompt import KEY
from protocol.section import Rank
from protocol.seq2seq_manifest import Seq2SeqManifest

DEVIATION = 0.02  # at first: keys of next to nothing, which every token sees alike


class PrefixSettings(EncoderSettings):
    """The parameters that are trained: a prefix."""

    method: Literal["prefix"] = Field(
        default="prefix", description="what is trained; `fedge methods` lists all"
    )
    tokens: Rank = Field(default=16, description="length of the prefix")


class Prefix(Rows[PrefixSettings]):
    """Keys and values before the text."""

    name, peft_type = "prefix", "PREFIX_TUNING"
    summary = "keys and values before the text, of every layer; takes positions from it"
    source = "prefix tuning, arXiv 2101.00190, with an encoder as in its section 4.3"
    elsewhere: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("prefix-tuning", "prefix_tuning"),
        'it is called `prefix`, with `encoder = "mlp"` as the paper trained it',
    )
    settings = PrefixSettings
    tried: ClassVar[Mapping[str, Any]] = {"tokens": 5}
    turns = (frozenset({PREFIX}),)
    free: ClassVar[Free] = {PREFIX: ("tokens", None)}
    writes = True
    saved_prefix = "base_model."  # as a prompt's
    place = "around"

    def specs(self, settings: PrefixSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """Drawn small."""
        if isinstance(manifest, DecoderManifest):
            (_, width) = manifest.prefix_slot().shape
            shape = (settings.tokens, int(width))
            yield TensorSpec(name=PREFIX, shape=shape, part=PREFIX, law=Law("normal", DEVIATION))

    def remarks(self, settings: PrefixSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """A base without keys and values to put it before, or with those of two texts."""
        if isinstance(manifest, Seq2SeqManifest):
            cause = f"a base that turns a text into another takes no {self.name}"
            yield "error", "adapter.method", cause, "train an adapter of linears, such as `lora`"
        elif not isinstance(manifest, DecoderManifest):
            cause = "only a base that writes text has keys and values to put a prefix before"
            yield "error", "adapter.method", cause, "train another; the nearest is `prompt`"
        else:
            yield from super().remarks(settings, manifest)

    def tokens(self, settings: PrefixSettings) -> int:
        """The prefix's length."""
        return settings.tokens

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """As it is."""
        return dict(tensors)

    def peft_config(self, settings: PrefixSettings, manifest: BaseManifest) -> dict[str, Any]:
        """See :class:`Method`."""
        assert isinstance(manifest, DecoderManifest)
        return {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": settings.tokens,
            "token_dim": manifest.kv_heads * manifest.head_size,
            "num_transformer_submodules": 1,
            "num_attention_heads": manifest.kv_heads,
            "num_layers": manifest.layers,
            "prefix_projection": False,
        }

    def saved_name(self, name: str) -> str:
        """Its key has no prefix of its own."""
        return KEY

    def canonical_name(self, key: str) -> str:
        """See :class:`Method`."""
        return PREFIX if key == KEY else super().canonical_name(key)

    def trained_name(self, name: str) -> str:
        """See :class:`Method`."""
        return "prompt_encoder.embedding.weight"
