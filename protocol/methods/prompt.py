"""A soft prompt: rows before the embeddings of a text (Lester et al., arXiv 2104.08691).

``soft_prompt`` is (tokens, width of an embedding). With an encoder it is P-tuning
(``protocol.methods.encoder``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.errors import PlanError
from protocol.forms import SOFT_PROMPT
from protocol.initial import Law
from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest, TextManifest, media_of
from protocol.methods.base import Constants, Free, Remark, remark_of
from protocol.methods.encoder import EncoderSettings, Rows
from protocol.section import Rank
from protocol.seq2seq_manifest import Seq2SeqManifest

PROMPT = "prompt"
KEY = "prompt_embeddings"  # in a PEFT folder


class PromptSettings(EncoderSettings):
    """The parameters that are trained: a soft prompt."""

    method: Literal["prompt"] = Field(
        default="prompt", description="what is trained; `fedge methods` lists all"
    )
    tokens: Rank = Field(default=16, description="length of the soft prompt")


class Prompt(Rows[PromptSettings]):
    """A soft prompt before the text."""

    name, peft_type = "prompt", "PROMPT_TUNING"
    summary = "a soft prompt before the text; takes positions from it"
    source = (
        "prompt tuning, arXiv 2104.08691; federated: FedPrompt, arXiv 2208.12268; with an encoder: P-tuning, "
        "arXiv 2103.10385"
    )
    elsewhere: ClassVar[Mapping[str, str]] = {
        "prompt_tuning": "it is called `prompt`",
        **dict.fromkeys(
            ("p-tuning", "p_tuning"), 'it is `method = "prompt"` with `encoder = "mlp"`'
        ),
    }
    settings = PromptSettings
    tried: ClassVar[Mapping[str, Any]] = {"tokens": 5}
    measured: ClassVar[Mapping[str, str]] = {
        "adapter.tokens": "10",
        "local.learning_rate": "1e-2",
    }
    turns = (frozenset({PROMPT}),)
    free: ClassVar[Free] = {PROMPT: ("tokens", None)}
    saved_prefix = "base_model."  # a tuner such as LoRA wraps the model once more
    place = "around"

    def specs(self, settings: PromptSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """Drawn like embeddings."""
        words = _of_words(manifest)
        law = Law("normal", _coarse(words.embedding_std))
        shape = (settings.tokens, words.embedding_size)
        yield TensorSpec(name=SOFT_PROMPT, shape=shape, part=PROMPT, law=law)

    def remarks(self, settings: PromptSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """A base that reads no prompt, or was built before it did."""
        if not isinstance(manifest, TextManifest):
            try:
                _of_words(manifest)
            except PlanError as error:
                yield remark_of(error)
        elif isinstance(manifest, Seq2SeqManifest):
            cause = f"a base that turns a text into another takes no {self.name}"
            yield "error", "adapter.method", cause, "train an adapter of linears, such as `lora`"
        elif SOFT_PROMPT not in manifest.graph.slot_names:
            cause = f"this base takes no {self.name}"
            yield "error", "adapter.method", cause, "build the base again"
        else:
            yield from super().remarks(settings, manifest)

    def tokens(self, settings: PromptSettings) -> int:
        """The prompt's length."""
        return settings.tokens

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """As it is."""
        return dict(tensors)

    def peft_config(self, settings: PromptSettings, manifest: BaseManifest) -> dict[str, Any]:
        """See :class:`Method`."""
        return {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": settings.tokens,
            "token_dim": _of_words(manifest).embedding_size,
            "num_transformer_submodules": 1,
            "num_attention_heads": 1,  # a prompt has none, but peft insists on a number
            "num_layers": manifest.layers,
            "prompt_tuning_init": "RANDOM",
        }

    def saved_name(self, name: str) -> str:
        """The prompt's key has no prefix."""
        return KEY

    def canonical_name(self, key: str) -> str:
        """See :class:`Method`."""
        return SOFT_PROMPT if key == KEY else super().canonical_name(key)

    def trained_name(self, name: str) -> str:
        """See :class:`Method`."""
        return "prompt_encoder.embedding.weight"


def _of_words(manifest: BaseManifest) -> TextManifest:
    """The manifest of a base with words to put a prompt before. Raises PlanError for another."""
    if isinstance(manifest, TextManifest):
        return manifest
    read = media_of(manifest)
    raise PlanError(
        f"`adapter.method`: a base of {read} has no words to put a prompt before, and peft no way to",
        "train an adapter of linears, such as `lora`",
    )


def _coarse(embedding_std: float) -> float:
    """To a multiple of 2^-12: bases of one fingerprint may have measured it with another last bit."""
    return max(1, round(embedding_std * 4096)) / 4096
