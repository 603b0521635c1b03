"""A model of t5-small's size with random weights: a token on the device, and a training step, beside torch.

python -m benchmarks.seq2seq

CPU seconds of one thread, the minimum of repeats; codes of 4 bits against transformers in 32-bit floats.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, processors
from transformers import T5Config, T5ForConditionalGeneration

from base_model.decoder.opened import opened_tensors
from base_model.programs.frozen import refer_to_weights
from base_model.programs.seq2seq import seq2seq_graph
from base_model.programs.session import open_session
from base_model.programs.tape import Symbol
from base_model.programs.token_loss import TARGET
from base_model.seq2seq.build import build_seq2seq
from base_model.seq2seq.families import shape_of
from base_model.seq2seq.folder import seq2seq_source
from base_model.weights_file import WEIGHTS
from edge_runtime.decoder.cache import Cache
from edge_runtime.seq2seq.base import Seq2SeqBase, memory_of
from protocol.forms import DOWN, UP

SOURCE, TOKENS, ROWS, LENGTH, RANK, REPEATS = 40, 64, 8, 32, 8, 4
A, B = ".lora_A", ".lora_B"


def least(run: Callable[[], object]) -> float:
    """CPU seconds of the fastest of some repeats."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(decoder_start_token_id=0)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def device(base: Seq2SeqBase, ids: list[int]) -> dict[str, float]:
    """Seconds of reading a source, and of a token that is written."""
    memory = memory_of(base.reader, base.manifest, ids, {})

    def write() -> None:
        cache, token = Cache(base, None, memory), base.manifest.start
        for _ in range(TOKENS):
            token = int(cache.read([token]).argmax())

    return {
        "source": least(lambda: memory_of(base.reader, base.manifest, ids, {})),
        "token": least(write) / TOKENS,
    }


def forms(tensors: Mapping[str, Symbol]) -> dict[str, Symbol]:
    ends = {A: DOWN, B: UP}
    return {name[: -len(A)] + ends[name[-len(A) :]]: value.T for name, value in tensors.items()}


def step(folder: Path, rows: Mapping[str, Any]) -> float:
    """Seconds of loss and gradients by ONNX Runtime, of factors beside queries and values."""
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    rng, adapter = np.random.default_rng(0), {}
    for linear in shape.linears():
        if linear.path.endswith((".q", ".v")):
            for end, size in ((A, (RANK, linear.in_features)), (B, (linear.out_features, RANK))):
                adapter[linear.path + end] = rng.normal(0, 0.05, size).astype(np.float32)
    tensors = opened_tensors(folder, shape)
    sizes = dict.fromkeys(adapter, 2)
    model = seq2seq_graph(shape, tensors, tensors=sizes, trained=adapter, forms=forms)
    refer_to_weights(model, folder / WEIGHTS)
    session = open_session(model.SerializeToString(), folder, threads=1)
    return least(lambda: session.run(None, {**rows, **adapter}))


def by_torch(folder: Path, ids: list[int], rows: Mapping[str, Any]) -> dict[str, float]:
    """The same by transformers and peft; a written token has its share of reading the source."""
    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    asked: dict[str, Any] = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    written = least(lambda: model.generate(input_ids=torch.tensor([ids]), **asked))
    config = LoraConfig(r=RANK, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    adapted = get_peft_model(model, config).eval()
    given = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
    given["labels"] = rows[TARGET]
    batch = {name: torch.from_numpy(value) for name, value in given.items()}
    return {"token": written / TOKENS, "step": least(lambda: adapted(**batch).loss.backward())}


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(3, 30_000, (2, ROWS, LENGTH))
    rows = {"input_ids": ids, "attention_mask": np.ones_like(ids), TARGET: targets}
    source = list(range(10, 10 + SOURCE))
    with tempfile.TemporaryDirectory() as name:
        model, base = Path(name) / "model", Path(name) / "base"
        model.mkdir()
        write_model(model)
        start = time.process_time()
        build_seq2seq(seq2seq_source(str(model)), bits=4, out=base)
        built = time.process_time() - start
        ours = device(Seq2SeqBase.open(base, threads=1), source) | {"step": step(base, rows)}
        theirs = by_torch(model, source, rows)
    ratios = {key: ours[key] / theirs[key] for key in theirs}
    print(json.dumps({"build": built, "onnx": ours, "torch": theirs, "ratio": ratios}, indent=1))


if __name__ == "__main__":
    main()
