"""Open a new graph once, and compare its answers with the model's, before a base is called built.

A graph that cannot be opened, or that answers otherwise than what is trained, would be noticed by a
device, after a whole run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from base_model.encoder import EncoderClassifier
from base_model.source_files import first_line
from protocol.errors import ArtefactError
from protocol.manifest import BOXES, TYPE_IDS
from protocol.rows.pages import EDGE

Feeds = Mapping[str, npt.NDArray[Any]]
BOUND = 1e-3  # of the largest feature; rounding makes some 1e-6
TOKENS = 8
VERSIONS = "install the versions in constraints.txt, and build again"


def check_graph(path: Path, model: EncoderClassifier, *, slots: bool) -> None:
    """``path`` opens in ONNX Runtime and gives ``model``'s features. Raises ArtefactError."""
    config = model.config
    tokens = min(TOKENS, config.max_position_embeddings // 2)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (2, tokens))
    ids[0, tokens // 2] = config.pad_token_id or 0  # a pad inside a text
    mask = np.ones_like(ids)
    mask[1, tokens // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    types = boxes = None
    if model.family.boxed:
        corners = rng.integers(0, EDGE + 1, (2, 2, tokens, 2))
        inputs[BOXES] = np.concatenate([corners.min(0), corners.max(0)], -1)
        boxes = torch.from_numpy(inputs[BOXES])
    if slots and model.type_table is not None:
        inputs[TYPE_IDS] = (np.arange(tokens) >= tokens // 2).astype(np.int64) + np.zeros_like(ids)
        types = torch.from_numpy(inputs[TYPE_IDS])
    with torch.no_grad():
        texts = torch.from_numpy(ids), torch.from_numpy(mask)
        features = model.features(*texts, types=types, boxes=boxes)
        expected = (features if slots else model.classifier(features)).numpy()
    if slots:
        verify_features(path, inputs, expected)
    else:
        _verify_answers(path, inputs, expected)


def verify_features(path: Path, inputs: Feeds, features: npt.NDArray[np.float32]) -> None:
    """The graph with slots gives ``features`` (rows, hidden) of ``inputs``. Raises ArtefactError."""
    width = features.shape[1]
    head = {  # one that shows the features themselves: the base's own may be zero
        "classifier.weight": np.eye(width, dtype=np.float32),
        "classifier.bias": np.zeros(width, np.float32),
    }
    _verify_answers(path, {**inputs, **head}, features)


def _verify_answers(path: Path, inputs: Feeds, expected: npt.NDArray[np.float32]) -> None:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        (answers,) = session.run(["logits"], dict(inputs))
    except Exception as error:  # ORT raises types of its own, without a common public base
        raise ArtefactError(
            f"the new graph cannot be opened: {first_line(error)}", VERSIONS
        ) from None
    worst = float(np.abs(answers - expected).max())
    if not worst <= BOUND * max(float(np.abs(expected).max()), 1e-6):
        raise ArtefactError(f"the new graph differs from the model by {worst:.1e}", VERSIONS)
