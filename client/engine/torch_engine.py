"""The engine on torch, transformers and peft: for CUDA, and what the other one is compared with.

An optional extra (``client-torch``); nothing imports this module unless the engine is chosen.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from base_model.media_store import open_headed
from base_model.tasks import OUTPUT_TASKS
from client.engine.adapter_model import AdapterModel
from client.engine.device import choose_device, matmul_dtype
from client.engine.interface import Values
from client.examples import RowBatch
from protocol.layout import Tensors
from protocol.recipe import Recipe
from protocol.rules import Parts


class TorchEngine:
    """The adapter of a recipe on a base that is opened for it, on the device that this machine has."""

    def __init__(self, base: Path, recipe: Recipe, *, threads: int = 0) -> None:
        """``base`` is verified; ``threads`` 0 is torch's default. Raises ArtefactError."""
        if threads > 0 and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        device = choose_device()
        opened = open_headed(
            base,
            labels=recipe.plan.task.outputs,
            verify=False,
            matmul_dtype=matmul_dtype(recipe.plan.local.precision, device),
        )
        opened.model.to(device)
        self._model, self._plan = AdapterModel(opened, recipe), recipe.plan
        self.layout = self._model.layout
        self.most: int | None = None
        self._lock = threading.Lock()  # the model holds one adapter at a time

    def gradients(self, tensors: Values, batch: RowBatch, parts: Parts) -> tuple[float, Tensors]:
        """See :class:`client.engine.interface.Engine`."""
        with self._lock:
            return self._gradients(tensors, batch, parts)

    def _gradients(self, tensors: Values, batch: RowBatch, parts: Parts) -> tuple[float, Tensors]:
        self._model.load(tensors)
        parameters = self._model.train_only(parts)
        for parameter in parameters.values():
            parameter.grad = None
        targets = torch.from_numpy(batch.targets).to(self._model.device)
        loss = OUTPUT_TASKS[self._plan.task.kind].torch_loss(self._forward(batch), targets)
        loss.backward()
        gradients = {
            name: np.zeros(tuple(parameter.shape), np.float32)  # a layer that no row reached
            if parameter.grad is None
            else parameter.grad.cpu().numpy()
            for name, parameter in parameters.items()
        }
        return float(loss.detach()), gradients

    def outputs(self, tensors: Values, batch: RowBatch) -> npt.NDArray[np.float32]:
        """See :class:`client.engine.interface.Engine`."""
        # no_grad, not inference_mode: the base's scratch buffers must stay usable for training.
        with self._lock, torch.no_grad():
            self._model.load(tensors)
            logits: npt.NDArray[np.float32] = self._forward(batch).cpu().numpy()
        return logits

    def _forward(self, batch: RowBatch) -> torch.Tensor:
        device = self._model.device
        inputs = {name: torch.from_numpy(rows).to(device) for name, rows in batch.inputs.items()}
        return self._model.answer(inputs).float()
