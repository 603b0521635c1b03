"""Local training, evaluation and prediction of one adapter: deterministic by seed.

Everything a step needs is prepared before the loop, and nothing in it waits for the device: the
loss is summed where it is computed and read once per epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from client.adapter_model import AdapterModel
from client.batches import Encoded, by_length, collate, training_batches
from protocol.errors import UpdateError
from protocol.plan import Local
from protocol.rules import Role

EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a training run reports.

    ``examples``: rows trained on, every epoch counted. ``loss_sum``: those rows times the last
    epoch's mean cross-entropy in nats (without FedProx's term), so that ``loss_sum / examples``
    is a mean loss. ``seconds``: wall time. ``steps``: optimiser steps.
    """

    examples: int
    loss_sum: float
    seconds: float
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Rows classified rightly, rows, and the sum of their cross-entropy in nats."""

    correct: int
    examples: int
    loss_sum: float

    @property
    def accuracy(self) -> float:
        """Share of rows classified rightly; 0 for no rows."""
        return self.correct / self.examples if self.examples else 0.0


def train(
    model: AdapterModel,
    rows: Encoded,
    *,
    local: Local,
    roles: frozenset[Role],
    seed: int,
    epochs: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_step: Callable[[int], None] | None = None,
) -> Trained:
    """Train the tensors of ``roles`` in place.

    ``epochs`` may be fractional and overrides ``local.epochs``; ``local.max_steps`` bounds both.
    Global random state is left as it was. Raises UpdateError when the loss is no longer finite.
    """
    started = clock()
    with torch.random.fork_rng(devices=_cuda_devices(model.device)):
        torch.manual_seed(seed)
        examples, last, steps = _run(model, rows, local, roles, seed, epochs, on_step)
    return Trained(
        examples=examples, loss_sum=last * examples, seconds=clock() - started, steps=steps
    )


def _run(
    model: AdapterModel,
    rows: Encoded,
    local: Local,
    roles: frozenset[Role],
    seed: int,
    epochs: float | None,
    on_step: Callable[[int], None] | None,
) -> tuple[int, float, int]:
    """(examples, mean loss of the last epoch, steps)."""
    step = _Step(model, local, roles)
    batches = training_batches(
        rows.lengths,
        batch_size=local.batch_size,
        seed=seed,
        epochs=float(local.epochs if epochs is None else epochs),
    )
    steps = examples = current = seen = 0
    total = torch.zeros((), device=model.device)
    for epoch, index in batches:
        if epoch != current:  # one that diverged goes on: how long it takes would tell (P-4.4)
            current, seen, total = epoch, 0, torch.zeros_like(total)
        total = total + step(rows, index)
        seen, examples, steps = seen + len(index), examples + len(index), steps + 1
        if on_step is not None:
            on_step(steps)
        if steps == local.max_steps:
            break
    return examples, _mean(total, seen), steps


def _mean(total: torch.Tensor, rows: int) -> float:
    value = float(total) / max(rows, 1)
    if not math.isfinite(value):
        raise UpdateError(
            "this client's training diverged: the loss is not finite",
            "lower local.learning_rate and local.head_learning_rate",
        )
    return value


class _Step:
    """One optimiser step; returns the batch's summed loss, still on the device."""

    def __init__(self, model: AdapterModel, local: Local, roles: frozenset[Role]) -> None:
        trained = model.train_only(roles)
        self._model, self._local = model, local
        self._parameters = list(trained.values())
        self._optimizer = _optimizer(model, trained, local)
        self._start = [parameter.detach().clone() for parameter in self._parameters]

    def __call__(self, rows: Encoded, index: npt.NDArray[np.int64]) -> torch.Tensor:
        batch = collate(rows, index, self._model.device)
        self._optimizer.zero_grad(set_to_none=True)
        logits = self._model.forward(batch.ids, batch.mask).float()
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        gradients = self._gradients()
        if self._local.proximal_mu > 0:
            # The gradient of FedProx's mu/2 * |w - w0|^2 (arXiv 1812.06127), without its graph.
            moved = torch._foreach_sub([p.detach() for p in self._parameters], self._start)
            torch._foreach_add_(gradients, moved, alpha=self._local.proximal_mu)
        nn.utils.clip_grad_norm_(self._parameters, self._local.clip_norm, foreach=True)
        self._optimizer.step()
        return loss.detach() * len(index)

    def _gradients(self) -> list[torch.Tensor]:
        gradients = []
        for parameter in self._parameters:
            if parameter.grad is None:  # a layer this batch did not reach: zero, not skipped
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        return gradients


def _optimizer(
    model: AdapterModel, trained: dict[str, nn.Parameter], local: Local
) -> torch.optim.Optimizer:
    head = [p for name, p in trained.items() if model.role(name) is Role.HEAD]
    adapter = [p for name, p in trained.items() if model.role(name) is not Role.HEAD]
    groups = [
        {"params": parameters, "lr": rate}
        for parameters, rate in ((adapter, local.learning_rate), (head, local.head_learning_rate))
        if parameters
    ]
    if local.optimizer == "sgd":
        return torch.optim.SGD(groups, weight_decay=local.weight_decay, fused=True)
    return torch.optim.AdamW(groups, weight_decay=local.weight_decay, fused=True)


def evaluate(model: AdapterModel, rows: Encoded) -> Score:
    """Accuracy and loss of the adapter as it is loaded."""
    if not len(rows):
        return Score(correct=0, examples=0, loss_sum=0.0)
    logits = torch.from_numpy(predict_logits(model, rows))
    labels = torch.from_numpy(rows.labels)
    return Score(
        correct=int((logits.argmax(-1) == labels).sum()),
        examples=len(rows),
        loss_sum=float(F.cross_entropy(logits.double(), labels, reduction="sum")),
    )


def predict_logits(
    model: AdapterModel, rows: Encoded, *, batch_size: int = EVALUATION_BATCH
) -> npt.NDArray[np.float32]:
    """Logits (rows, labels) float32, in the order of ``rows``."""
    logits = np.zeros((len(rows), len(model.plan.task.labels)), np.float32)
    # no_grad, not inference_mode: the base's scratch buffers must stay usable for training.
    with torch.no_grad():
        for index in by_length(rows.lengths, batch_size=batch_size):
            batch = collate(rows, index, model.device)
            logits[index] = model.forward(batch.ids, batch.mask).float().cpu().numpy()
    return logits


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
