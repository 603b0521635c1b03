"""A T5-shaped model learns to translate in rounds, and a device translates with what was released.

    FEDGE_SHARED=FOLDER python benchmarks/translation.py [--out runs/translation] [--rounds 4] [--json]

No small T5 with weights is to be had without a model hub, so this one has none of its own: random numbers of
two layers a stack, with a vocabulary of the training rows (``data/multi30k`` of FOLDER, English and German). Federated
over ten sites under secure aggregation, adapters of rank 32 on every linear; what counts is that all parties do what they
do for a real one, and that the perplexity falls: it cannot translate well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

VOCABULARY, WIDTH = 2048, 128
EXPERIMENT = """
format = 1
name = "translation"
base.source = "model"
data.train = "shared:data/multi30k/train.jsonl"
data.test = "test.jsonl"
population = {{ clients = 10, partition = "iid" }}
yardsticks.alone = 0
samples = {{ rows = 40, tokens = 32 }}
[plan]
seed = 0
rounds = {rounds}
task = {{ kind = "seq2seq-lm", source = "en", target = "de", max_length = 48 }}
adapter = {{ rank = 32, alpha = 32.0, targets = "all-linear" }}
rule.name = "mean"
cohort = {{ size = 10, quorum = 8 }}
local = {{ batch_size = 32, max_steps = 12, learning_rate = 5e-3 }}
"""


def write_model(folder: Path, texts: list[str]) -> None:
    """A random T5 and a tokenizer of byte pairs of ``texts``, as transformers writes them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import T5Config, T5ForConditionalGeneration

    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=32,
        d_ff=4 * WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = T5ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name == "lm_head.weight" or "shared" in name:
            torch.nn.init.normal_(parameter, 0.0, WIDTH**-0.5)
    model.save_pretrained(folder)


def measure(out: Path, rounds: int) -> dict[str, Any]:
    """Figures of a run in ``out``, a new folder."""
    from simulations.experiment import load_experiment, resolve_source
    from simulations.progress import NoProgress
    from simulations.run import simulate

    def rows(name: str) -> list[dict[str, str]]:
        path = resolve_source(f"shared:data/multi30k/{name}.jsonl", folder=out)
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    train = rows("train")
    write_model(out / "model", [row[side] for row in train for side in ("en", "de")])
    test = rows("test_2016_flickr")[:200]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in test)
    (out / "test.jsonl").write_text(lines, "utf-8")
    (out / "translation.toml").write_text(EXPERIMENT.format(rounds=rounds))
    experiment = load_experiment(out / "translation.toml")
    summary = simulate(experiment, out / "run", resume=False, progress=NoProgress())
    names = ("perplexity_before", "perplexity_federated", "perplexity_pooled", "chrf_before")
    more = ("chrf_federated", "bleu_federated", "parity_tokens", "parity_max_relative", "audit")
    return {name: getattr(summary, name) for name in (*names, *more, "seconds")}


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/translation"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    figures = measure(arguments.out.resolve(), arguments.rounds)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
