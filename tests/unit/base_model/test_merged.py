"""Merged models answer as the released adapter does, opened by their users' programs and not by ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from base_model.merged import write_merged
from base_model.parity import Bounds
from protocol.errors import ArtefactError
from protocol.methods import METHODS
from protocol.peft_format import ParityError
from tests.methods import SORTING
from tests.unit.base_model.sources import TEXTS
from tests.unit.base_model.test_opener import ALL, OURS, Case, build, edge_logits, tiny_cases

BOUNDS = Bounds(relative=1e-4)
LABELS = ["light", "music", "timer"]
PROGRAM = """
import json, math, sys, warnings
warnings.simplefilter("error", UserWarning)
jobs, texts, ours = map(json.loads, sys.argv[1:4])
said = {}
for name, folder, kind in jobs:
    if kind == "onnx":
        import numpy as np, onnxruntime
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
        session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
        encoded = tokenizer.encode_batch(texts)
        feeds = {"input_ids": np.array([e.ids for e in encoded], np.int64),
                 "attention_mask": np.array([e.attention_mask for e in encoded], np.int64)}
        logits = session.run(["logits"], feeds)[0].tolist()
        labels = json.load(open(folder + "/labels.json", encoding="utf-8"))
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    else:
        import transformers
        if kind == "hf":
            classify = transformers.pipeline("text-classification", model=folder, truncation=True)
        else:
            sys.path.insert(0, folder)
            sys.modules.pop("open_model", None)
            from open_model import pipeline
            classify = pipeline(folder)
            sys.path.pop(0)
        rows = classify(texts, top_k=None, function_to_apply="none")
        labels = list(classify.model.config.id2label.values())
        logits = [[{e["label"]: e["score"] for e in row}[label] for label in labels] for row in rows]
        batched = classify(texts, batch_size=len(texts), top_k=1)
        assert [row[0]["label"] for row in batched] == [row[0]["label"] for row in rows]
        shares = [{e["label"]: e["score"] for e in row} for row in classify(texts, top_k=None)]
        for row, said_row in zip(logits, shares):  # probabilities, as a device has them
            powers = [math.exp(value - max(row)) for value in row]
            for label, power in zip(labels, powers):
                assert abs(said_row[label] - power / sum(powers)) < 1e-5, (said_row, powers)
    said[name] = {"labels": labels, "logits": logits}
assert not {name.partition(".")[0] for name in sys.modules} & set(ours)
print(json.dumps(said))
"""


def ask(jobs: list[tuple[str, Path, str]], folder: Path) -> tuple[Any, str]:
    """What programs without fedge get from merged folders; and what they print beside it."""
    given = json.dumps([(name, str(path), kind) for name, path, kind in jobs])
    result = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, given, json.dumps(TEXTS), json.dumps(OURS)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def check(cases: list[Case], folder: Path, *, bits: int) -> None:
    jobs: dict[str, list[tuple[str, Path, str]]] = {"onnx": [], "hf": []}
    expected = {}
    for case in cases:
        for kind in ("onnx", "hf"):
            if kind == "hf" and case.name.endswith("prompt"):
                continue
            out = folder / "merged" / f"{case.name}-{kind}-{bits}"
            parity = write_merged(
                case.adapter, case.base, out, kind=kind, bits=bits, texts=TEXTS, bounds=BOUNDS
            )
            name = f"{case.name}-{kind}"
            expected[name] = edge_logits(case)
            plain = kind == "onnx" or "pooler" in case.name
            jobs[kind].append((name, out, kind if plain else "own"))
            said = json.loads((out / "parity.json").read_text())
            assert said["max_relative"] == parity.max_relative <= said["bound"]
            assert (said["bits"], said["rows"]) == (bits, len(TEXTS))
            if kind == "hf":
                for file in out.rglob("*.safetensors"):
                    stored = {(x.ndim > 1, x.dtype) for x in load_file(file).values()}
                    matrix = (
                        np.float16 if bits == 16 and file.name != "head.safetensors" else np.float32
                    )
                    assert stored == {(True, np.dtype(matrix)), (False, np.dtype(np.float32))}
            text = " ".join((out / "README.md").read_text().split())
            assert "Merged and rounded to codes again it would be gone" in text
            assert (kind == "hf" and not plain) == ("and no class of transformers" in text)
    answers, printed = ask(jobs["onnx"], folder)
    assert printed == ""  # ONNX Runtime has nothing to warn of
    answers |= ask(jobs["hf"], folder)[0]
    for name, logits in expected.items():
        assert answers[name]["labels"] == LABELS
        found = np.array(answers[name]["logits"], np.float32)
        scale = max(1.0, float(np.abs(logits).max()))
        assert np.abs(found - logits).max() <= (1e-4 if bits == 32 else 1e-2) * scale, name
        if bits == 32:
            assert (found.argmax(1) == logits.argmax(1)).all(), name


@pytest.mark.slow
def test_merged_models_answer_as_a_device_does(
    tiny_source: Path, tiny_base: Path, released: dict[str, Path], tmp_path: Path
) -> None:
    cases = tiny_cases(tiny_source, tiny_base, released)[:1]
    check(cases, tmp_path, bits=32)
    refused_where_they_must_be(cases[0], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_merged_models_of_every_method(write_adapter: Any, tmp_path: Path, pooling: str) -> None:
    """But of those that are no weights (``test_bottlenecks.py``)."""
    weights = [name for name in SORTING if METHODS[name].of_peft]
    check(list(build(tmp_path, "bert", pooling, write_adapter, weights)), tmp_path, bits=32)


def refused_where_they_must_be(case: Case, folder: Path) -> None:
    """Nothing is left of what misses its bound; what is there is not written over."""
    out = folder / "strict"
    strict = Bounds(relative=1e-12, absolute=1e-12)
    with pytest.raises(ParityError, match="differ by"):
        write_merged(case.adapter, case.base, out, kind="onnx", bits=32, texts=TEXTS, bounds=strict)
    assert not out.exists()
    out.mkdir()
    (out / "x").touch()
    with pytest.raises(ArtefactError, match="exists already"):
        write_merged(case.adapter, case.base, out, kind="onnx", bits=32, texts=TEXTS, bounds=BOUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 16])
def test_merged_models_of_every_family_and_pooling(
    write_adapter: Any, tmp_path: Path, bits: int
) -> None:
    cases: list[Case] = []
    for family, pooling in ALL:
        folder = tmp_path / f"{family}-{pooling}"
        cases += build(folder, family, pooling, write_adapter, ["lora", "prompt"])
    check(cases, tmp_path, bits=bits)
    prompts = [case for case in cases if case.name.endswith("prompt")]
    out = tmp_path / "prompt"
    with pytest.raises(ArtefactError, match="soft prompt is no weight"):
        write_merged(
            prompts[0].adapter,
            prompts[0].base,
            out,
            kind="hf",
            bits=bits,
            texts=TEXTS,
            bounds=BOUNDS,
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "hf"])
def test_a_releases_temperature_is_in_the_head(
    tiny_source: Path, tiny_base: Path, released: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """The softmax of a merged model is what a device says, of which `--reject-below` is a bound."""
    case = tiny_cases(tiny_source, tiny_base, released)[0]
    adapter = tmp_path / "adapter"
    shutil.copytree(case.adapter, adapter)
    note = json.loads((adapter / "release.json").read_text())
    shares = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"), 0.5)
    note["calibration"] = {"temperature": 2.5, "rows": 9} | shares
    (adapter / "release.json").write_text(json.dumps(note))
    out = tmp_path / "merged"
    write_merged(adapter, case.base, out, kind=kind, bits=32, texts=TEXTS, bounds=BOUNDS)
    assert json.loads((out / "parity.json").read_text())["temperature"] == 2.5
    answers, _ = ask([("it", out, "onnx" if kind == "onnx" else "own")], tmp_path)
    found = np.array(answers["it"]["logits"], np.float32)
    assert np.abs(found * 2.5 - edge_logits(case)).max() <= 1e-4


ODD: list[dict[str, Any]] = [
    {"problem_type": "multi_label_classification"},
    {
        "function_to_apply": "none",
        "return_all_scores": True,
        "task_specific_params": {"text-classification": {"problem_type": "regression"}},
        "custom_pipelines": {"text-classification": {"impl": "x.Y"}},
        "prefix": "x",
        "output_hidden_states": True,
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_what_the_sources_author_set_for_pipelines_is_not_merged(
    write_adapter: Any, tmp_path: Path, pooling: str
) -> None:
    """The documented pipeline gives a device's probabilities, whatever the source's config asks for."""
    cases = []
    for number, settings in enumerate(ODD):
        folder = tmp_path / str(number)
        for case in build(folder, "bert", pooling, write_adapter, ["lora"], **settings):
            cases.append(replace(case, name=f"{case.name}-{number}"))
    check(cases, tmp_path, bits=32)
