"""What a diffusion transformer computes, as numbers: sizes, and the names of its tensors in diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocol.manifest import Linear

SINUSOID = 256  # numbers that a step becomes
PERIOD = 10_000.0
PARTS = (
    6  # that a block's modulation has: shift, scale and gate, of attention and of the feed-forward
)
WIDER = 4  # times the hidden states, within a feed-forward
NORM_EPSILON = 1e-6  # of all norms but the one before a feed-forward


@dataclass(frozen=True, kw_only=True)
class DenoiserShape:
    """Of diffusers' ``DiTTransformer2DModel``: images are squares of ``side`` by ``side`` pixels.

    ``outputs``: channels that the last linear gives, of which the first ``channels`` are the noise.
    ``classes``: rows of the table of classes but the last, which is no class.
    """

    channels: Literal[1, 3]
    outputs: int
    side: int
    patch: int
    layers: int
    heads: int
    head_size: int
    classes: int
    epsilon: float
    bias: bool

    @property
    def hidden(self) -> int:
        """Numbers of a patch's state."""
        return self.heads * self.head_size

    @property
    def across(self) -> int:
        """Patches in a row of an image."""
        return self.side // self.patch

    @property
    def patches(self) -> int:
        """Of an image."""
        return self.across**2

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear that is adapted and may be in codes, by its module's path."""
        hidden = self.hidden
        return {
            f"{block_path(layer)}.{name}": size
            for layer in range(self.layers)
            for name, size in (
                ("norm1.linear", (PARTS * hidden, hidden)),
                *((f"attn1.{part}", (hidden, hidden)) for part in ("to_q", "to_k", "to_v")),
                ("attn1.to_out.0", (hidden, hidden)),
                ("ff.net.0.proj", (WIDER * hidden, hidden)),
                ("ff.net.2", (hidden, WIDER * hidden)),
            )
        }

    def linears(self) -> list[Linear]:
        """The same for a manifest."""
        return [
            Linear(path=path, in_features=width, out_features=out)
            for path, (out, width) in sorted(self.matrices().items())
        ]

    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what stays in float32, by the tensors' names: biases, and all that is not adapted."""
        hidden, values = self.hidden, self.patch**2
        free = ("attn1.to_q", "attn1.to_k", "attn1.to_v")  # of a bias, where the config says so
        shapes: dict[str, tuple[int, ...]] = {
            f"{path}.bias": (out,)
            for path, (out, _) in self.matrices().items()
            if self.bias or not path.endswith(free)
        }
        shapes |= {
            "pos_embed.proj.weight": (hidden, self.channels, self.patch, self.patch),
            "pos_embed.proj.bias": (hidden,),
            "proj_out_1.weight": (2 * hidden, hidden),
            "proj_out_1.bias": (2 * hidden,),
            "proj_out_2.weight": (values * self.outputs, hidden),
            "proj_out_2.bias": (values * self.outputs,),
        }
        for layer in range(self.layers):
            first, second = (f"{condition_path(layer)}.{STEP}.linear_{n}" for n in (1, 2))
            shapes |= {
                f"{first}.weight": (hidden, SINUSOID),
                f"{first}.bias": (hidden,),
                f"{second}.weight": (hidden, hidden),
                f"{second}.bias": (hidden,),
                class_table(layer): (self.classes + 1, hidden),
            }
        return shapes


STEP = "timestep_embedder"


def block_path(layer: int) -> str:
    """The module's path of a block."""
    return f"transformer_blocks.{layer}"


def condition_path(layer: int) -> str:
    """Of what makes a vector of step and class, of which each block has its own."""
    return f"{block_path(layer)}.norm1.emb"


def class_table(layer: int) -> str:
    """Name of the table of classes of a block."""
    return f"{condition_path(layer)}.class_embedder.embedding_table.weight"
