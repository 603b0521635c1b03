"""A diffusion transformer in torch, by the module paths of diffusers' class, which fedge does without.

It is what a graph is compared with where a base is built or an adapter released, and what peft wraps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention, silu

from base_model.decoder.opened import opened_tensors
from base_model.decoder.products import Stores
from base_model.decoder.stored import floats_of
from base_model.denoisers.families import shape_of
from base_model.denoisers.graph import patch_places, step_frequencies
from base_model.denoisers.shape import NORM_EPSILON, PARTS, SINUSOID, WIDER, DenoiserShape
from base_model.source_files import read_object
from protocol.manifest import CONFIG


class Denoiser(nn.Module):
    """Images (rows, channels, side, side) float32, steps and classes (rows,) int64 to the noise."""

    def __init__(self, shape: DenoiserShape) -> None:
        super().__init__()
        self.shape = shape
        self.pos_embed: Any = _Module(
            proj=nn.Conv2d(shape.channels, shape.hidden, shape.patch, stride=shape.patch)
        )
        self.transformer_blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.proj_out_1 = nn.Linear(shape.hidden, 2 * shape.hidden)
        self.proj_out_2 = nn.Linear(shape.hidden, shape.patch**2 * shape.outputs)
        self.places = torch.from_numpy(patch_places(shape))

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The noise alone, without a variance that was learnt beside it."""
        shape = self.shape
        stream = self.pos_embed.proj(hidden_states).flatten(2).transpose(1, 2) + self.places
        for block in self.transformer_blocks:
            stream = block(stream, timestep, class_labels)
        first = self.transformer_blocks[0]
        assert isinstance(first, _Block)
        condition = silu(first.norm1.emb(timestep, class_labels))
        shift, scale = self.proj_out_1(condition).chunk(2, dim=1)
        values = self.proj_out_2(_modulated(stream, shift, scale, NORM_EPSILON))
        across, patch = shape.across, shape.patch
        squares = values.reshape(-1, across, across, patch, patch, shape.outputs)
        image = squares.permute(0, 5, 1, 3, 2, 4).reshape(-1, shape.outputs, shape.side, shape.side)
        noise: Tensor = image[:, : shape.channels]
        return noise


class _Module(nn.Module):
    """Others under names."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class _Condition(nn.Module):
    def __init__(self, shape: DenoiserShape) -> None:
        super().__init__()
        self.timestep_embedder: Any = _Module(
            linear_1=nn.Linear(SINUSOID, shape.hidden),
            linear_2=nn.Linear(shape.hidden, shape.hidden),
        )
        table = nn.Embedding(shape.classes + 1, shape.hidden)
        self.class_embedder: Any = _Module(embedding_table=table)
        self.frequencies = torch.from_numpy(step_frequencies())

    def forward(self, steps: Tensor, classes: Tensor) -> Tensor:
        angles = steps[:, None].float() * self.frequencies
        waves = torch.cat([angles.cos(), angles.sin()], 1)
        step = self.timestep_embedder.linear_2(silu(self.timestep_embedder.linear_1(waves)))
        condition: Tensor = step + self.class_embedder.embedding_table(classes)
        return condition


class _Block(nn.Module):
    def __init__(self, shape: DenoiserShape) -> None:
        super().__init__()
        hidden, self.shape = shape.hidden, shape
        self.norm1: Any = _Module(emb=_Condition(shape), linear=nn.Linear(hidden, PARTS * hidden))
        read = {
            name: nn.Linear(hidden, hidden, bias=shape.bias) for name in ("to_q", "to_k", "to_v")
        }
        self.attn1: Any = _Module(**read, to_out=nn.ModuleList([nn.Linear(hidden, hidden)]))
        first, last = (
            _Module(proj=nn.Linear(hidden, WIDER * hidden)),
            nn.Linear(WIDER * hidden, hidden),
        )
        self.ff: Any = _Module(net=nn.ModuleList([first, nn.Identity(), last]))

    def forward(self, stream: Tensor, steps: Tensor, classes: Tensor) -> Tensor:
        parts = self.norm1.linear(silu(self.norm1.emb(steps, classes))).chunk(PARTS, dim=1)
        read = _modulated(stream, parts[0], parts[1], NORM_EPSILON)
        stream = stream + parts[2][:, None] * self._attention(read)
        read = _modulated(stream, parts[3], parts[4], self.shape.epsilon)
        inner = gelu(self.ff.net[0].proj(read), approximate="tanh")
        result: Tensor = stream + parts[5][:, None] * self.ff.net[2](inner)
        return result

    def _attention(self, read: Tensor) -> Tensor:
        sizes = (*read.shape[:2], self.shape.heads, self.shape.head_size)
        heads = [
            self.attn1.get_submodule(name)(read).reshape(sizes).transpose(1, 2)
            for name in ("to_q", "to_k", "to_v")
        ]
        mixed = scaled_dot_product_attention(*heads).transpose(1, 2).reshape(read.shape)
        output: Tensor = self.attn1.to_out[0](mixed)
        return output


def _modulated(stream: Tensor, shift: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    normed = layer_norm(stream, stream.shape[-1:], eps=epsilon)
    return normed * (1 + scale[:, None]) + shift[:, None]


def torch_denoiser(shape: DenoiserShape, weights: Stores) -> Denoiser:
    """The model with the numbers that ``weights`` stand for, in float32 and eval mode."""
    with torch.device("meta"):
        model = Denoiser(shape)
    model.places = torch.from_numpy(patch_places(shape))
    for module in model.modules():
        if isinstance(module, _Condition):
            module.frequencies = torch.from_numpy(step_frequencies())
    model.load_state_dict(state_of(shape, weights), assign=True)
    return model.requires_grad_(False).eval()


def state_of(shape: DenoiserShape, weights: Stores) -> Mapping[str, Tensor]:
    """Tensors by diffusers' names, float32: what its own class takes as well."""
    widths = {f"{path}.weight": width for path, (_, width) in shape.matrices().items()}
    return {
        name: torch.from_numpy(floats_of(value, widths.get(name, 0)).copy())
        for name, value in weights.items()
    }


def opened_denoiser(folder: Path) -> Denoiser:
    """Of a verified base. Raises ArtefactError."""
    path = folder / CONFIG
    shape = shape_of(read_object(path), source=str(path))
    return torch_denoiser(shape, opened_tensors(folder, shape))
