"""Random sources of every family, as transformers and sentence-transformers write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from tests.tiny_model import WORDS

FAMILIES = (
    *("bert", "distilbert", "roberta", "xlm-roberta"),
    *("camembert", "mpnet", "ernie", "electra", "albert"),
)
LABELS = ["light", "music", "timer", "other"]
WORDS_64 = list(dict.fromkeys(WORDS))[:64]
TEXTS = [
    "turn on the kitchen light",
    "play some music now",
    "the",
    "",
    "set a timer for ten minutes and buy some bread at the window",
    "you <pad> and <pad> me",
    "<pad>",
    "we <mask> it </s> up <s> <unk>",
]
POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


def write_tokenizer(folder: Path, *, pad: int = 1) -> int:
    """A word-level tokenizer whose padding token has the id ``pad``; returns its number of tokens."""
    others = ["<s>", "</s>", "<unk>", "<mask>", *WORDS_64]
    tokens = [*others[:pad], "<pad>", *others[pad:]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>", "<mask>", "<pad>"])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s>:1 $B:1 </s>:1",
        special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {f"{kind}_token": f"<{kind}>" for kind in ("pad", "unk", "mask")}
    special |= {"cls_token": "<s>", "sep_token": "</s>"}
    settings = {**special, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tokens)


def write_source(
    folder: Path,
    *,
    family: str = "bert",
    classifier: bool = False,
    pad: int = 1,
    pooling: str = "",
    seed: int = 0,
    **settings: Any,
) -> Path:
    """An encoder, or with ``classifier`` a model with its own head; ``pooling`` adds `1_Pooling`."""
    folder.mkdir(parents=True)
    size = write_tokenizer(folder, pad=pad)
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    config = AutoConfig.for_model(
        family,
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        type_vocab_size=1 if "roberta" in family or family == "camembert" else 2,
        pad_token_id=pad,
        **({} if family != "distilbert" else {"dim": 32, "n_layers": 2, "n_heads": 4}),
        **({} if family != "distilbert" else {"hidden_dim": 48}),
        **({"embedding_size": 20} if family in ("electra", "albert") else {}),
        **(named if classifier else {}),
        **settings,
    )
    kind = AutoModelForSequenceClassification if classifier else AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(config).float()
        for name, parameter in model.named_parameters():  # large: the text shall matter
            scale = name.lower().replace("_", "").endswith("layernorm.weight")
            torch.nn.init.normal_(parameter, float(scale), 0.3 if parameter.ndim == 2 else 0.1)
    model.save_pretrained(folder)
    if pooling:
        add_pooling(folder, {POOLINGS[pooling]: True})
    return folder


def add_pooling(folder: Path, modes: dict[str, Any], name: str = "1_Pooling") -> None:
    """sentence-transformers' file of a pooling."""
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **modes})
    )


def listed(folder: Path, first: str = "") -> Path:
    """``modules.json`` as sentence-transformers writes it; the encoder lies in ``first``."""
    kinds = [("Transformer", first), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return tensors


def as_bin(folder: Path) -> str:
    """One ``pytorch_model.bin``."""
    torch.save(_weights(folder), folder / "pytorch_model.bin")
    return str(folder)


def _halves(folder: Path, name: str, write: Callable[[dict[str, torch.Tensor], Path], Any]) -> str:
    tensors = _weights(folder)
    stem, _, kind = name.rpartition(".")
    names = sorted(tensors)
    parts = [names[0::2], names[1::2]]
    where = {}
    for number, part in enumerate(parts):
        shard = f"{stem}-{number + 1:05}-of-00002.{kind}"
        write({key: tensors[key] for key in part}, folder / shard)
        where |= dict.fromkeys(part, shard)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return str(folder)


def as_shards(folder: Path) -> str:
    """Two safetensors files and their index."""
    return _halves(folder, "model.safetensors", save_file)


def as_bin_shards(folder: Path) -> str:
    """Two ``.bin`` files and their index."""
    return _halves(folder, "pytorch_model.bin", torch.save)


def as_old_layout(folder: Path) -> str:
    """sentence-transformers of old: the encoder in `0_Transformer`, named from above."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file():
            path.rename(inner / path.name)
    if (folder / "1_Pooling").is_dir():
        listed(folder, "0_Transformer")
    return str(folder)


def as_old_encoder(folder: Path) -> str:
    """The same, named by the encoder's own folder."""
    return str(Path(as_old_layout(folder)) / "0_Transformer")


def as_new_layout(folder: Path) -> str:
    """sentence-transformers of today: everything above, and a list."""
    return str(listed(folder) if (folder / "1_Pooling").is_dir() else folder)


def as_cache(folder: Path, *, name: str = "owner/some-model") -> Path:
    """The Hub's cache: blobs, and a snapshot of links to them. Returns the cache's folder."""
    cache = folder.parent / "hub"
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    blobs.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    shutil.rmtree(folder)
    return cache


def as_snapshot(folder: Path) -> str:
    """A snapshot in the Hub's cache, named by its folder."""
    return str(next(as_cache(folder).glob("models--*/snapshots/*")))


def as_repository(folder: Path) -> str:
    """The repository's folder in the Hub's cache."""
    return str(next(as_cache(folder).glob("models--*")))


CONTAINERS: dict[str, Callable[[Path], str]] = {
    "single": str,
    "bin": as_bin,
    "shards": as_shards,
    "bin shards": as_bin_shards,
    "old layout": as_old_layout,
    "old encoder": as_old_encoder,
    "new layout": as_new_layout,
    "snapshot": as_snapshot,
    "repository": as_repository,
}
