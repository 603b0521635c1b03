"""A folder of a base of files answers as the device does, by its own module, and never otherwise by peft's."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForAudioClassification, AutoModelForImageClassification

from base_model.release import release_adapter
from edge_runtime.backends import open_backend
from protocol.media import IMAGE, SOUND
from protocol.methods import METHODS
from tests.image_models import LABELS, write_images
from tests.methods import SORTING
from tests.sound_models import write_sounds
from tests.tiers import one_by_default

BASES = ("tiny_images", "tiny_sounds", "tiny_samples")
FITTING = [name for name in SORTING if name not in ("prompt", "hybrid")]


@pytest.mark.parametrize("method", one_by_default("norm", FITTING))
@pytest.mark.parametrize("fixture", BASES)
def test_a_folder_opens_as_it_is_meant_or_not_at_all(
    request: pytest.FixtureRequest,
    write_adapter: Callable[..., Path],
    tmp_path: Path,
    method: str,
    fixture: str,
) -> None:
    images = fixture == "tiny_images"
    reader = "pixels" if images else "features"
    kind: Any = AutoModelForImageClassification if images else AutoModelForAudioClassification
    base: Path = request.getfixturevalue(fixture)
    files = (write_images if images else write_sounds)(tmp_path / "files", 4)
    task = {"kind": (IMAGE if images else SOUND).task, "labels": LABELS}
    adapter = write_adapter(tmp_path / "adapter", base=base, task=task, method=method, seed=1)
    release_adapter(adapter, base, texts=files, bound=1e-4)
    backend = open_backend(base, threads=1)
    answers = backend.runtime.infer(files, backend.load(adapter))
    expected = np.array([answer.logits for answer in answers])
    opener = runpy.run_path(str(adapter / "open_adapter.py"))
    inputs = opener[reader](base)(files)
    with torch.no_grad():
        found = opener["load"](adapter, base)(**inputs).logits.numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    ordinary = kind.from_pretrained(base.parent / "source")
    if METHODS[method].own_opener or not METHODS[method].of_peft:
        with pytest.raises((KeyError, ValueError)):
            PeftModel.from_pretrained(ordinary, str(adapter))
        return
    model = PeftModel.from_pretrained(ordinary, str(adapter)).eval()
    with torch.no_grad():  # on weights that are no codes: near, not equal
        near = model(**inputs).logits.numpy()
    own = opener["load"](adapter, base.parent / "source")
    with torch.no_grad():
        assert np.abs(near - own(**inputs).logits.numpy()).max() <= 1e-4 * np.abs(near).max()
