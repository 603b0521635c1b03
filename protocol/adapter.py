"""Which tensors an adapter has: from a plan and a base's manifest to a layout. (P-2.1)

Names are the module paths of the unwrapped Hugging Face model, without PEFT's prefixes:
``bert.encoder.layer.0.attention.self.query.lora_A`` is ``(r, in)``, ``….lora_B`` is ``(out, r)``
(PEFT's orientation), ``….lora_R`` is ``(r, r)`` where the plan's rule trains a core between fixed
factors (``W + s * B @ R @ A``), ``soft_prompt`` is ``(n, hidden)``, the head ``<path>.weight`` is
``(labels, in)`` and ``<path>.bias`` ``(labels,)``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from protocol.draws import normal, orthonormal_columns, uniform
from protocol.encoding import seed_from
from protocol.errors import ArtefactError, PlanError
from protocol.layout import Layout, Tensors, TensorSpec, Vector
from protocol.manifest import TYPE_IDS, Linear, Manifest
from protocol.rules import Role, rule_named

if TYPE_CHECKING:  # a device reads no plan
    from protocol.plan import Plan
    from protocol.plan_sections import Adapter

SOFT_PROMPT = "soft_prompt"
LARGEST = 64.0  # magnitude of a coordinate that clients train on (P-4.2)
LORA_A, LORA_B, LORA_R = ".lora_A", ".lora_B", ".lora_R"
HEAD_STD = 0.02  # of a fresh head


def target_linears(adapter: Adapter, manifest: Manifest) -> tuple[Linear, ...]:
    """The linears that get LoRA factors, by path. Raises PlanError for a target that is not there.

    A target matches whole trailing path components: ``query`` or ``attention.output.dense``.
    """
    if adapter.targets == "all-linear":
        return tuple(sorted(manifest.linears, key=lambda linear: linear.path))
    chosen: dict[str, Linear] = {}
    for target in adapter.targets:
        found = [x for x in manifest.linears if f".{x.path}".endswith(f".{target}")]
        if not found:
            ends = sorted({linear.path.rsplit(".", 1)[-1] for linear in manifest.linears})
            raise PlanError(
                f"`adapter.targets`: the base has no linear `{target}`",
                f'linears end in: {", ".join(ends)}; or use targets = "all-linear"',
            )
        chosen.update({linear.path: linear for linear in found})
    return tuple(chosen[path] for path in sorted(chosen))


def adapter_layout(plan: Plan, manifest: Manifest) -> Layout:
    """The full adapter's layout, head included."""
    specs: list[TensorSpec] = []
    if plan.adapter.method == "lora":
        r = plan.adapter.rank
        core = rule_named(plan.rule.name).has_core
        for linear in target_linears(plan.adapter, manifest):
            specs.append(
                TensorSpec(
                    name=linear.path + LORA_A, shape=(r, linear.in_features), role=Role.LORA_A
                )
            )
            specs.append(
                TensorSpec(
                    name=linear.path + LORA_B, shape=(linear.out_features, r), role=Role.LORA_B
                )
            )
            if core:
                specs.append(TensorSpec(name=linear.path + LORA_R, shape=(r, r), role=Role.LORA_R))
    else:
        shape = (plan.adapter.tokens, manifest.embedding_size)
        specs.append(TensorSpec(name=SOFT_PROMPT, shape=shape, role=Role.PROMPT))
    outputs, head = plan.task.outputs, manifest.head
    specs.append(
        TensorSpec(name=f"{head.path}.weight", shape=(outputs, head.in_features), role=Role.HEAD)
    )
    specs.append(TensorSpec(name=f"{head.path}.bias", shape=(outputs,), role=Role.HEAD))
    return Layout(tuple(sorted(specs, key=lambda spec: spec.name)))


def sent_layout(plan: Plan, manifest: Manifest) -> Layout:
    """What clients are sent of the adapter: the tensors that some round trains. (P-2.6)

    All of it where the plan has a start: the others then do not follow from its seed.
    """
    layout = adapter_layout(plan, manifest)
    return layout if plan.start else layout.only(rule_named(plan.rule.name).trained)


def completed(vector: Vector, plan: Plan, manifest: Manifest) -> Tensors:
    """The full adapter of the vector that was sent; what no round trains is derived. (P-2.6)

    Raises ArtefactError when the length differs.
    """
    tensors = sent_layout(plan, manifest).unflatten(vector)
    layout = adapter_layout(plan, manifest)
    if len(tensors) < len(layout.specs):
        start = _start(layout, plan.seed, manifest.embedding_std)
        tensors |= {name: start[name].copy() for name in start.keys() - tensors.keys()}
    return tensors


@lru_cache(maxsize=2)
def _start(layout: Layout, seed: int, embedding_std: float) -> Tensors:
    # Orthonormal factors take a second for 2 million numbers, and a message is checked more than once.
    return initial_adapter(layout, seed=seed, embedding_std=embedding_std)


def takes_types(plan: Plan, manifest: Manifest) -> bool:
    """Whether rows are pairs, and the base tells the first text's tokens from the second's. (P-1.10)"""
    return plan.task.pairs and TYPE_IDS in manifest.graph.inputs


def lora_scaling(plan: Plan) -> float:
    """s in W + s * B @ (R @) A: alpha / rank of the plan."""
    return plan.adapter.alpha / plan.adapter.rank


def initial_adapter(layout: Layout, *, seed: int, embedding_std: float) -> Tensors:
    """Round 0, the same bytes for whoever derives it. (P-2.3)

    A is uniform in ±1/sqrt(in) (PEFT's Kaiming init), B zero, a prompt like embeddings. The head starts
    small and random: a zero head would pass no gradient to the adapter. Around a core A's rows and B's
    columns are orthonormal, unscaled, and the core is zero: then ``|B R A| = |R|`` in the Frobenius and
    the spectral norm, so a learning rate means the same for layers of every width, and the L2 norm that
    the exchange clips is that of the change over s. Another constant c would be another learning rate:
    under AdamW, c and rate/c do the same. Random, where Fed-SB (arXiv 2502.15436) takes singular vectors
    of a gradient, which is data.
    """
    core = any(spec.role is Role.LORA_R for spec in layout.specs)
    return {
        spec.name: _initial(spec, seed_from("initial", seed, spec.name), core, embedding_std)
        for spec in layout.specs
    }


def _initial(
    spec: TensorSpec, seed: int, core: bool, embedding_std: float
) -> npt.NDArray[np.float32]:
    """One tensor of round 0, row-major."""
    if core and spec.role is Role.LORA_A:
        value = orthonormal_columns(seed, spec.shape[1], spec.shape[0]).T
    elif core and spec.role is Role.LORA_B:
        value = orthonormal_columns(seed, *spec.shape)
    elif spec.role is Role.LORA_A:
        value = uniform(seed, spec.shape) * (1.0 / math.sqrt(spec.shape[1]))
    elif spec.role is Role.PROMPT:
        value = normal(seed, spec.shape) * _coarse(embedding_std)
    elif spec.role is Role.HEAD and len(spec.shape) == 2:
        value = normal(seed, spec.shape) * HEAD_STD
    else:
        value = np.zeros(spec.shape)
    return value.astype(np.float32, order="C")


def _coarse(embedding_std: float) -> float:
    """To a multiple of 2^-12: bases of one fingerprint may have measured it with another last bit."""
    return max(1, round(embedding_std * 4096)) / 4096


def as_plain_lora(tensors: Tensors) -> Tensors:
    """The adapter as every PEFT reader computes it: A, ``B @ R`` in B's place, no core.

    The product ``B @ R @ A`` is the same up to the rounding of B @ R to float32. An adapter without
    cores is returned as it is. This is what is published and measured; its sums are added in the
    order of P-5.1, so that others get the same bytes, where ``@`` would leave the order to a library.
    """
    plain = {name: value for name, value in tensors.items() if not name.endswith(LORA_R)}
    for name in tensors.keys() - plain.keys():
        path = name.removesuffix(LORA_R)
        b, core = tensors[path + LORA_B].astype(np.float64), tensors[name].astype(np.float64)
        product = np.zeros_like(b)
        for column, row in zip(b.T, core, strict=True):
            product += column[:, None] * row
        plain[path + LORA_B] = product.astype(np.float32)
    return plain


def with_unit_cores(plain: Tensors, layout: Layout) -> Tensors:
    """A plain LoRA adapter in ``layout``: every core that the layout has is the identity."""
    cores = [spec for spec in layout.specs if spec.role is Role.LORA_R]
    return plain | {spec.name: np.eye(spec.shape[0], dtype=np.float32) for spec in cores}


def verify_magnitude(vector: Vector) -> None:
    """An adapter that can be trained on: (d,) finite, none beyond 64 in magnitude. Raises ArtefactError."""
    if not np.isfinite(vector).all():
        raise ArtefactError(
            "the adapter holds NaN or infinity", "go on from an earlier round's adapter"
        )
    if vector.size and (largest := float(np.abs(vector).max())) > LARGEST:
        raise ArtefactError(
            f"the adapter holds a value of magnitude {largest:.3g}, the most is {LARGEST:g}",
            "go on from an earlier round's adapter, with lower learning rates",
        )
