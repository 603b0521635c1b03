"""A folder of a base of documents answers as the device does, by its own module and by peft's on the ordinary class."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from base_model.build import build_base
from base_model.release import release_adapter
from base_model.store import open_base
from client.engine.adapter_model import AdapterModel
from edge_runtime.backends import open_backend
from protocol.manifest import DOCUMENTS
from protocol.methods import METHODS
from protocol.peft_format import CARD_FILE
from protocol.recipe import Recipe
from tests.methods import SORTING
from tests.page_models import LABELS, pages, row_of, write_pages_source
from tests.tiers import one_by_default
from tests.unit.client.test_pages import TASK, plan_of

SEVERAL = [*pages(3), *pages(1, seed=5, most=40)]  # one is cut
FITTING = [name for name in SORTING if name != "hybrid"]


def documents(folder: Path) -> list[str]:
    paths = []
    for at, page in enumerate(SEVERAL):
        paths.append(folder / f"{at}.json")
        paths[-1].write_text(
            json.dumps({k: v for k, v in row_of(page, "").items() if k != "label"})
        )
    return list(map(str, paths))


@pytest.mark.parametrize("method", one_by_default("prompt", SORTING))
def test_a_folder_opens_as_it_is_meant(
    tiny_pages: Path, write_adapter: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    adapter = write_adapter(
        tmp_path / "adapter", base=tiny_pages, task=TASK, method=method, seed=1, deviation=0.1
    )
    note = release_adapter(adapter, tiny_pages, texts=SEVERAL, bound=1e-4)
    assert note.parity is not None
    backend = open_backend(tiny_pages, threads=1)
    answers = backend.runtime.infer(SEVERAL, backend.load(adapter))
    expected = np.array([answer.logits for answer in answers])
    opener = runpy.run_path(str(adapter / "open_adapter.py"))
    inputs = opener["pages"](adapter, tiny_pages)(documents(tmp_path))
    assert inputs["input_ids"].shape[1] == 16
    with torch.no_grad():
        found = opener["load"](adapter, tiny_pages)(**inputs).logits.numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    source = tiny_pages.parent / "source"
    ordinary = AutoModelForSequenceClassification.from_pretrained(source)
    if METHODS[method].own_opener or not METHODS[method].of_peft:
        with pytest.raises((KeyError, ValueError)):
            PeftModel.from_pretrained(ordinary, str(adapter))
        return
    model = PeftModel.from_pretrained(ordinary, str(adapter)).eval()
    prompt = METHODS[method].tokens(plan_of(tiny_pages, method).adapter)
    bbox = torch.nn.functional.pad(inputs["bbox"], (0, 0, prompt, 0))
    with torch.no_grad():  # on weights that are no codes: near, not equal
        near = model(**inputs | {"bbox": bbox}).logits.numpy()
        own = opener["load"](adapter, source)(
            **opener["pages"](adapter, source)(documents(tmp_path))
        )
    assert np.abs(near - own.logits.numpy()).max() <= 1e-4 * np.abs(near).max()
    assert ("boxes for the prompt" in (adapter / CARD_FILE).read_text()) == bool(prompt)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_base_that_pools_otherwise_opens_by_its_own_module_alone(
    write_adapter: Callable[..., Path], tmp_path: Path, pooling: str
) -> None:
    source, base = write_pages_source(tmp_path / "source"), tmp_path / "base"
    build_base(str(source), task=DOCUMENTS, bits=4, out=base, pooling=pooling)
    adapter = write_adapter(tmp_path / "adapter", base=base, task=TASK, deviation=0.1)
    release_adapter(adapter, base, texts=SEVERAL, bound=1e-4)
    backend = open_backend(base, threads=1)
    answers = backend.runtime.infer(SEVERAL, backend.load(adapter))
    expected = np.array([answer.logits for answer in answers])
    opener = runpy.run_path(str(adapter / "open_adapter.py"))
    rows = [{k: v for k, v in row_of(page, "").items() if k != "label"} for page in SEVERAL]
    inputs = opener["pages"](adapter, base)(rows)
    with torch.no_grad():
        found = opener["load"](adapter, base)(**inputs).logits.numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    ordinary = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(LABELS))
    with pytest.raises((KeyError, ValueError)):
        PeftModel.from_pretrained(ordinary, str(adapter))


@pytest.mark.parametrize("method", one_by_default("lora", FITTING))
def test_a_run_begins_as_peft_does_with_the_same_bits(tiny_pages: Path, method: str) -> None:
    recipe = Recipe(plan=plan_of(tiny_pages, method), manifest=open_base(tiny_pages).manifest)
    model = AdapterModel(open_base(tiny_pages, labels=len(LABELS)), recipe)
    model.load(recipe.start())
    for name, value in model.tensors().items():
        assert value.tobytes() == recipe.start()[name].tobytes(), name
