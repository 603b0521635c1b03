"""``open_adapter.py`` answers as the released adapter does, by torch, transformers and peft alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from base_model.build import build_base, model_of
from base_model.peft_folder import read_note
from base_model.release import edge_session, open_peft, release_adapter
from base_model.source import load_source
from base_model.store import open_base
from protocol.methods import METHODS
from protocol.peft_opener import OPENER
from tests.methods import SORTING
from tests.unit.base_model.sources import FAMILIES, TEXTS, write_source

# A head behind a pooler is what a family has of its own; without one the poolings are everybody's.
WHOLE = ("bert", "distilbert", "roberta", "xlm-roberta")
ALL = [(family, pooling) for family in WHOLE for pooling in ("mean", "cls", "pooler")]
ALL += [(family, "pooler") for family in FAMILIES if family not in WHOLE]
OURS = ("protocol", "base_model", "server", "client", "audit", "edge_runtime", "fedge")
PROGRAM = """
import importlib.util, json, sys
import numpy as np, torch
ours, jobs, texts, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
answers = {}
for name, folder, base in jobs:
    spec = importlib.util.spec_from_file_location("open_adapter", folder + "/open_adapter.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load(folder, base)
    inputs = module.tokenizer(base)(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        answers[name] = model(**inputs).logits.numpy()
    assert list(model.config.id2label.values()) == ["light", "music", "timer"]
np.savez(out, **answers)
loaded = {name.partition(".")[0] for name in sys.modules} & set(ours)
assert not loaded, loaded
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A released adapter, its base and the source of that."""

    name: str
    source: Path
    base: Path
    adapter: Path


def build(
    folder: Path,
    family: str,
    pooling: str,
    write_adapter: Any,
    methods: list[str],
    **config: Any,
) -> Any:
    """Cases of one base at 4 bits; ``config``: further fields of the source's."""
    classifies = pooling == "pooler"
    source = write_source(
        folder / "source",
        family=family,
        classifier=classifies,
        pooling="" if classifies else pooling,
        **config,
    )
    base = folder / "base"
    build_base(str(source), task="sequence-classification", bits=4, out=base, scales=True)
    for method in methods:
        adapter = write_adapter(folder / method, method=method, base=base)
        release_adapter(adapter, base, texts=TEXTS, bound=1e-4)
        name = f"{family}-{pooling}-{method}"
        yield Case(name=name, source=source, base=base, adapter=adapter)


def edge_logits(case: Case) -> np.ndarray:
    """What a device answers, all texts in one batch."""
    session, options, _keep = edge_session(case.base, case.adapter / "adapter.onnx_adapter")
    tokenizer = open_base(case.base, verify=False).tokenizer
    tokenizer.enable_truncation(read_note(case.adapter).max_length)
    encoded = tokenizer.encode_batch(TEXTS)
    ids = np.array([each.ids for each in encoded], np.int64)
    mask = np.array([each.attention_mask for each in encoded], np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask}
    answers: np.ndarray = session.run(["logits"], feeds, options)[0]
    return answers


def float_logits(case: Case) -> np.ndarray:
    """The adapter on the source's own weights, by fedge."""
    opened = open_base(case.base, labels=3)
    model = model_of(load_source(str(case.source), pooling="auto"))
    model.classifier = torch.nn.Linear(32, 3)
    opened.tokenizer.enable_truncation(16)
    encoded = opened.tokenizer.encode_batch(TEXTS)
    with torch.no_grad():
        answers = open_peft(replace(opened, model=model), case.adapter)(
            input_ids=torch.tensor([each.ids for each in encoded]),
            attention_mask=torch.tensor([each.attention_mask for each in encoded]),
        )
    return np.asarray(answers.logits)


def check(cases: list[Case], folder: Path) -> None:
    jobs = [(f"{c.name}-codes", str(c.adapter), str(c.base)) for c in cases]
    jobs += [(f"{c.name}-source", str(c.adapter), str(c.source)) for c in cases]
    arguments = [json.dumps(OURS), json.dumps(jobs), json.dumps(TEXTS), str(folder / "out.npz")]
    result = subprocess.run(
        [
            sys.executable,
            "-I",
            "-B",
            "-c",
            PROGRAM,
            *arguments,
        ],  # releases of others stay as they are
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answers = np.load(folder / "out.npz")
    for case in cases:
        for kind, expected in (("codes", edge_logits(case)), ("source", float_logits(case))):
            found = answers[f"{case.name}-{kind}"]
            assert np.ptp(expected, axis=0).max() > 0.1, case.name  # the text matters
            scale = max(1.0, float(np.abs(expected).max()))
            assert np.abs(found - expected).max() <= 1e-4 * scale, (case.name, kind)
            assert (found.argmax(1) == expected.argmax(1)).all(), (case.name, kind)
        check_ordinary_class(case)


def check_ordinary_class(case: Case) -> None:
    """It answers the same, or it does not open: it never answers otherwise."""
    ordinary = AutoModelForSequenceClassification.from_pretrained(
        case.source, num_labels=3, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    method = next(each for name, each in METHODS.items() if case.name.endswith(f"-{name}"))
    if not case.name.startswith("bert-pooler") or method.own_opener:
        refusal = "classifier" if method.of_peft else method.peft_type
        with pytest.raises(KeyError, match=refusal):
            PeftModel.from_pretrained(ordinary, str(case.adapter))
        return
    model = PeftModel.from_pretrained(ordinary, str(case.adapter)).eval()
    inputs = AutoTokenizer.from_pretrained(case.source)(
        TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        answers = model(**inputs).logits.numpy()
    assert np.abs(answers - float_logits(case)).max() <= 1e-4 * np.abs(answers).max()


def tiny_cases(source: Path, base: Path, released: dict[str, Path]) -> list[Case]:
    """Of the base that all tests have: BERT, pooled by mean."""
    kinds = {"lora": released["a"], "prompt": released["c"]}
    return [
        Case(name=f"bert-mean-{kind}", source=source, base=base, adapter=adapter)
        for kind, adapter in kinds.items()
    ]


def test_the_file_answers_as_a_device_does(
    tiny_source: Path, tiny_base: Path, released: dict[str, Path], tmp_path: Path
) -> None:
    cases = tiny_cases(tiny_source, tiny_base, released)
    assert (cases[0].adapter / "open_adapter.py").read_text() == OPENER
    check(cases, tmp_path)


@pytest.mark.slow
def test_the_file_answers_as_a_device_does_in_every_family_and_pooling(
    write_adapter: Any, tmp_path: Path
) -> None:
    cases: list[Case] = []
    for family, pooling in ALL:
        folder = tmp_path / f"{family}-{pooling}"
        cases += build(folder, family, pooling, write_adapter, ["lora", "prompt"])
    check(cases, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_the_file_answers_as_a_device_does_of_every_method(
    write_adapter: Any, tmp_path: Path, pooling: str
) -> None:
    check(list(build(tmp_path, "bert", pooling, write_adapter, SORTING)), tmp_path)
