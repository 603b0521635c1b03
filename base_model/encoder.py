"""The classification model on a base: encoder, pooling, linear head. (docs/adr/0007)

Module paths are Hugging Face's (``bert.encoder.layer.0…``, ``classifier``), so PEFT folders keep
the usual names. A soft prompt arrives through ``inputs_embeds`` (peft puts it in front and extends
the mask); its positions take part in the pooling like any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from base_model.families import FAMILIES


class EncoderClassifier(PreTrainedModel):
    """Encoder and head. ``pooling``: mean over the mask, first token, or the encoder's pooler."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(
        self, config: PretrainedConfig, *, pooling: str, labels: int, attention: str = "sdpa"
    ) -> None:
        super().__init__(config)
        self.pooling = pooling
        self.prefix = FAMILIES[config.model_type].prefix
        self.base_model_prefix = self.prefix
        self.config.num_labels = labels
        encoder = AutoModel.from_config(
            config, attn_implementation=attention, **self._pooler_argument(config)
        )
        self.add_module(self.prefix, encoder)
        self.classifier = nn.Linear(config.hidden_size, labels)

    def _pooler_argument(self, config: PretrainedConfig) -> dict[str, bool]:
        return (
            {"add_pooling_layer": self.pooling == "pooler"} if config.model_type == "bert" else {}
        )

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        embeddings: nn.Module = self.get_submodule(self.prefix).get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.get_submodule(self.prefix).set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **_ignored: Any,
    ) -> SequenceClassifierOutput:
        """Logits (rows, labels) of ids or embeddings (rows, tokens[, hidden]).

        ``token_type_ids`` is accepted and not used: one segment, type 0.
        """
        given = (
            {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        )
        encoded = self.get_submodule(self.prefix)(attention_mask=attention_mask, **given)
        logits = self.classifier(self._pool(encoded, attention_mask))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _pool(self, encoded: Any, mask: Tensor | None) -> Tensor:
        hidden: Tensor = encoded.last_hidden_state
        if self.pooling == "pooler":
            pooled: Tensor = encoded.pooler_output
            return pooled
        if self.pooling == "cls":
            return hidden[:, 0]
        if mask is None:
            return hidden.mean(1)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def encoder_linears(model: nn.Module, prefix: str) -> dict[str, nn.Linear]:
    """The linears of the encoder's layers by module path: what is quantised and adapted."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{prefix}.") and ".layer." in name
    }


def word_embedding_std(model: EncoderClassifier) -> float:
    """Standard deviation of the word embeddings, for prompts that start like words."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return float(weight.detach().to(torch.float64).std())
