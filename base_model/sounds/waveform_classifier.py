"""The classification model on a base that hears samples: convolutions, encoder, mean over time, linear head.

Module paths are Hugging Face's (``wav2vec2.encoder.layers.0…``, ``projector``, ``classifier``): with the
layer between encoder and head this is the class for sequences of its family, so PEFT folders open on that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from base_model.media_build import MediaModel
from base_model.sounds.families import FAMILIES
from base_model.sounds.frames import frames_of
from protocol.waveform_manifest import MASK, VALUES

LOW = torch.finfo(torch.float32).min


class WaveformClassifier(MediaModel):
    """Samples (rows, samples) float32, and with ``masked`` which are a sound's own, to logits (rows, labels).

    ``projected``: whether a layer stands before the head, which reads the mean, as it does of other sounds.
    """

    main_input_name = VALUES

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        labels: int,
        projected: bool,
        masked: bool,
        attention: str | None = None,
    ) -> None:
        super().__init__(config)
        family = FAMILIES[config.model_type]
        self.prefix = self.base_model_prefix = family.prefix
        self.layers, self.key = family.layers, family.key
        # norms of these are in front of whatever is adapted
        self.front = tuple(
            f"{family.prefix}.{part}." for part in ("feature_extractor", "feature_projection")
        )
        self.config.num_labels = labels
        self.masked, self.frames = masked, frames_of(config.to_dict())
        encoder = AutoModel.from_config(config, attn_implementation=attention or "sdpa")
        positions = encoder.encoder.pos_conv_embed
        positions.conv = _plain(positions.conv)
        self.add_module(self.prefix, encoder)
        width = config.hidden_size
        if projected:
            width = config.classifier_proj_size
            self.projector = nn.Linear(config.hidden_size, width)
        self.projected = projected
        self.classifier = nn.Linear(width, labels)

    @property
    def inputs(self) -> list[str]:
        """See :class:`MediaModel`."""
        return [VALUES, MASK] if self.masked else [VALUES]

    def get_input_embeddings(self) -> nn.Module:
        """What makes vectors of samples."""
        embeddings: nn.Module = self.get_submodule(self.prefix).feature_extractor
        return embeddings

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_ignored: Any,
    ) -> SequenceClassifierOutput:
        """Logits of samples."""
        assert input_values is not None
        logits = self.get_submodule(self._head)(self.features(input_values, attention_mask))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def features(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the head reads, (rows, width). Of positions that are padding nothing is seen or averaged."""
        model = self.get_submodule(self.prefix)
        frames = model.feature_extractor(inputs).transpose(1, 2)
        hidden = model.feature_projection(frames.reshape(-1, frames.shape[2]))
        if isinstance(hidden, tuple):  # wav2vec 2.0's, with what was projected
            hidden = hidden[0]
        hidden = hidden.reshape(-1, frames.shape[1], hidden.shape[-1])
        own = None if mask is None else self._own(mask, hidden.shape[1]).unsqueeze(-1)
        encoded = self._encoded(hidden if own is None else hidden * own, own)
        # A sum, divided: programs go back through that. (P-11.4)
        mean = (
            encoded.sum(1) / encoded.shape[1]
            if own is None
            else (encoded * own).sum(1) / own.sum(1)
        )
        features: Tensor = self.projector(mean) if self.projected else mean
        return features

    def _encoded(self, hidden: Tensor, own: Tensor | None) -> Tensor:
        """(rows, positions, hidden), with norms behind or before every layer."""
        encoder = self.get_submodule(self.prefix).encoder
        last = self.config.do_stable_layer_norm
        bias = None if own is None else (1.0 - own).reshape(-1, 1, 1, own.shape[1]) * LOW
        hidden = hidden + encoder.pos_conv_embed(hidden)
        if not last:
            hidden = encoder.layer_norm(hidden)
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask=bias)
        return encoder.layer_norm(hidden) if last else hidden

    def _own(self, mask: Tensor, positions: int) -> Tensor:
        """(rows, positions) float32: 1 where all samples that are heard are a sound's own, and at the first.

        Of a sound that is shorter than what a position hears transformers would average all positions.
        """
        ends = [position * self.frames.hop + self.frames.least for position in range(positions)]
        needed = torch.tensor([0, *ends[1:]], device=mask.device)
        return (mask.sum(1, keepdim=True) >= needed).float()


def _plain(convolution: nn.Conv1d) -> nn.Conv1d:
    """The same without the norm of its kernel, which is multiplied in."""
    return nn.Conv1d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size[0],
        padding=int(convolution.padding[0]),
        groups=convolution.groups,
    )
