"""The classification model on a base of sounds: encoder, mean over time, linear head.

Module paths are Hugging Face's (``encoder.layers.0…``, ``projector``, ``classifier``): with the layer between
encoder and head this is ``WhisperForAudioClassification``, so PEFT folders open on the ordinary class.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from base_model.media_build import MediaModel
from base_model.sounds.families import FAMILIES


class SoundClassifier(MediaModel):
    """Features of sounds (rows, bands, frames) float32 to logits (rows, labels).

    ``projected``: whether a layer stands before the head. There its outputs are averaged and here its inputs,
    which is the same, it being linear, and one row in the place of all of a sound's.
    """

    main_input_name = "input_features"

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        labels: int,
        projected: bool,
        attention: str | None = None,
    ) -> None:
        super().__init__(config)
        family = FAMILIES[config.model_type]
        self.prefix = self.base_model_prefix = family.prefix
        self.layers, self.key = family.layers, family.key
        self.config.num_labels = labels
        encoder = WhisperEncoder._from_config(config, attn_implementation=attention or "sdpa")
        self.add_module(self.prefix, encoder)
        width = config.hidden_size
        if projected:
            width = config.classifier_proj_size
            self.projector = nn.Linear(config.hidden_size, width)
        self.projected = projected
        self.classifier = nn.Linear(width, labels)

    def get_input_embeddings(self) -> nn.Module:
        """What makes vectors of frames."""
        embeddings: nn.Module = self.get_submodule(self.prefix).conv1
        return embeddings

    def forward(
        self, input_features: Tensor | None = None, labels: Tensor | None = None, **_ignored: Any
    ) -> SequenceClassifierOutput:
        """Logits of log-mel features."""
        assert input_features is not None
        logits = self.get_submodule(self._head)(self.features(input_features))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def features(self, inputs: Tensor) -> Tensor:
        """What the head reads, (rows, width)."""
        encoded = self.get_submodule(self.prefix)(inputs).last_hidden_state
        return self.pooled(encoded)

    def pooled(self, encoded: Tensor) -> Tensor:
        """The same of what the encoder gives, (rows, positions, hidden).

        A sum, divided: that is what the graphs of other bases have, and programs go back through. (P-11.4)
        """
        mean: Tensor = encoded.sum(1) / encoded.shape[1]
        return self.projector(mean) if self.projected else mean
