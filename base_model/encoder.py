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
from protocol.manifest import BOXES


class HeadedModel(PreTrainedModel):
    """An encoder of Hugging Face under its ``prefix``, and a linear head ``classifier`` on what it gives.

    ``layers``: what the module path of every linear in a layer has in it.
    """

    config_class = PretrainedConfig
    _supports_sdpa = True
    prefix: str
    layers: str
    classifier: nn.Linear
    _head = "classifier"

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """The linears of the encoder's layers by module path: what is quantised and adapted."""
        return {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear)
            and name.startswith(f"{self.prefix}.")
            and self.layers in name
        }

    def rename_head(self, name: str) -> None:
        """Call the head what a PEFT folder calls it. (P-5.1)"""
        head = self.get_submodule(self._head)
        delattr(self, self._head)
        self.add_module(name, head)
        self._head = name


class EncoderClassifier(HeadedModel):
    """Encoder and head. ``pooling``: mean over the mask, first token, or a dense layer on the first token.

    That layer is the encoder's own pooler; DistilBERT and ELECTRA have none, and Hugging Face's classes for
    them have a layer of the head there: ``pooler`` here, since peft would train whatever is under
    "classifier". In RoBERTa the pooler does what the inner layer of that class's head does.
    """

    main_input_name = "input_ids"

    def __init__(
        self, config: PretrainedConfig, *, pooling: str, labels: int, attention: str | None = None
    ) -> None:
        super().__init__(config)
        self.pooling, self.family = pooling, FAMILIES[config.model_type]
        self.prefix, self.layers = self.family.prefix, self.family.layers
        self.base_model_prefix = self.prefix
        self.config.num_labels = labels
        fixed = self.family.boxed or self.family.activation
        encoder = AutoModel.from_config(
            config,
            attn_implementation=attention or self.family.attention,
            **({} if fixed else {"add_pooling_layer": pooling == "pooler"}),
        )
        if self.family.boxed and pooling != "pooler":
            encoder.pooler = nn.Identity()
        self.add_module(self.prefix, encoder)
        if self.family.activation and pooling == "pooler":
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, labels)

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
        segments: Tensor | None = None,
        bbox: Tensor | None = None,
        **_ignored: Any,
    ) -> SequenceClassifierOutput:
        """Logits (rows, labels) of ids or embeddings (rows, tokens[, hidden]).

        ``segments`` (rows, words) are token types by a name that peft hands on behind a prompt, whose
        positions are of type 0; where there are none, and in families without, so are all. ``bbox``
        (rows, words, 4): where words stand, of a family that reads it; a prompt stands at zeros.
        """
        head = self.get_submodule(self._head)
        types = token_type_ids if segments is None else segments
        logits = head(self.features(input_ids, attention_mask, inputs_embeds, types, bbox))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def features(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None = None,
        types: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """What the head reads, (rows, hidden)."""
        encoder = self.get_submodule(self.prefix)
        further = {}
        if types is not None and self.type_table is not None:
            width = types.shape[1] if inputs_embeds is None else inputs_embeds.shape[1]
            further["token_type_ids"] = nn.functional.pad(types, (width - types.shape[1], 0))
        if boxes is not None and self.family.boxed:
            width = boxes.shape[1] if inputs_embeds is None else inputs_embeds.shape[1]
            further[BOXES] = nn.functional.pad(boxes, (0, 0, width - boxes.shape[1], 0))
        if inputs_embeds is None:
            encoded = encoder(input_ids=input_ids, attention_mask=attention_mask, **further)
        else:
            encoded = encoder(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                **self.positions(self._seen_pads(inputs_embeds)),
                **further,
            )
        return self._pool(encoded, attention_mask)

    @property
    def type_table(self) -> Tensor | None:
        """Embeddings of token types (types, width of word embeddings); None where rows are no pairs.

        So are those of a table of less than two types, and of documents.
        """
        if self.family.boxed:
            return None
        table = getattr(self.get_submodule(self.prefix).embeddings, "token_type_embeddings", None)
        if not isinstance(table, nn.Embedding) or table.num_embeddings < 2:
            return None
        return table.weight

    def positions(self, counted: Tensor) -> dict[str, Tensor]:
        """Arguments that give the encoder positions, where its family takes them from ids. (P-1.9)

        ``counted`` (rows, tokens) is false where a pad stands, also inside a text. Without them
        Hugging Face's encoder counts embeddings one by one, and so unlike the same ids.
        """
        if not self.family.counts_pads:
            return {}
        ones = counted.to(torch.int64)
        return {"position_ids": ones.cumsum(1) * ones + self.config.pad_token_id}

    def _seen_pads(self, embeddings: Tensor) -> Tensor:
        """Which positions are no pad, by their embedding: peft hands over no ids beside a prompt."""
        weight = self.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        pad = weight[self.config.pad_token_id or 0].to(embeddings.dtype)
        return (embeddings != pad).any(-1)

    def _pool(self, encoded: Any, mask: Tensor | None) -> Tensor:
        hidden: Tensor = encoded.last_hidden_state
        if self.pooling == "pooler":
            pooled: Tensor
            if self.family.activation:
                pooled = getattr(nn.functional, self.family.activation)(self.pooler(hidden[:, 0]))
            else:
                pooled = encoded.pooler_output
            return pooled
        if self.pooling == "cls":
            return hidden[:, 0]
        if mask is None:
            return hidden.mean(1)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def word_embedding_std(model: EncoderClassifier) -> float:
    """Standard deviation of the word embeddings, for prompts that start like words."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return float(weight.detach().to(torch.float64).std())
