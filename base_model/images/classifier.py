"""The classification model on a base of images: encoder, first token, linear head.

Module paths are Hugging Face's (``vit.layers.0…``, ``classifier``): what a head on the first token is there,
it is here, so PEFT folders open on the ordinary class.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig
from transformers.modeling_outputs import ImageClassifierOutput

from base_model.images.families import FAMILIES
from base_model.media_build import MediaModel


class ImageClassifier(MediaModel):
    """Images (rows, channels, height, width) float32 to logits (rows, labels)."""

    main_input_name = "pixel_values"

    def __init__(
        self, config: PretrainedConfig, *, labels: int, attention: str | None = None
    ) -> None:
        super().__init__(config)
        self.family = FAMILIES[config.model_type]
        self.prefix = self.base_model_prefix = self.family.prefix
        self.layers, self.key = self.family.layers, self.family.key
        self.config.num_labels = labels
        encoder = AutoModel.from_config(
            config, attn_implementation=attention or "sdpa", add_pooling_layer=False
        )
        self.add_module(self.prefix, encoder)
        self.classifier = nn.Linear(config.hidden_size, labels)

    def get_input_embeddings(self) -> nn.Module:
        """What makes vectors of patches."""
        embeddings: nn.Module = self.get_submodule(self.prefix).embeddings.patch_embeddings
        return embeddings

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **_ignored: Any
    ) -> ImageClassifierOutput:
        """Logits of images that are scaled already."""
        assert pixel_values is not None
        logits = self.get_submodule(self._head)(self.features(pixel_values))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def features(self, inputs: Tensor) -> Tensor:
        """What the head reads, (rows, hidden)."""
        encoded = self.get_submodule(self.prefix)(pixel_values=inputs)
        features: Tensor = encoded.last_hidden_state[:, 0]
        return features
