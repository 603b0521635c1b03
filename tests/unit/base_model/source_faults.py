"""What a source may lack or have broken, and how its files are spoilt so; a table with each refusal's cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.unit.base_model.sources import (
    as_bin,
    as_shards,
    listed,
)

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
Spoil = Callable[[Path], Any]


def edit(name: str, **changes: Any) -> Spoil:
    """Change keys of a JSON file; None removes one."""

    def spoil(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        document |= changes
        kept = {key: value for key, value in document.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return spoil


def write(name: str, text: str | bytes) -> Spoil:
    """Replace a file."""
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, keep: int = 200) -> Spoil:
    """Keep the first bytes of a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def remove(*names: str) -> Spoil:
    """Remove files."""

    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def rename(old: str, new: str) -> Spoil:
    """Rename a file."""
    return lambda folder: (folder / old).rename(folder / new)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    """Change the checkpoint's tensors."""

    def spoil(folder: Path) -> None:
        loaded = load_file(folder / "model.safetensors")
        change(loaded)
        save_file(loaded, folder / "model.safetensors", {"format": "pt"})

    return spoil


def after(*spoils: Spoil) -> Spoil:
    """One change after the other."""

    def spoil(folder: Path) -> None:
        for each in spoils:
            each(folder)

    return spoil


EMBEDDINGS = "embeddings.word_embeddings.weight"


def short_table(loaded: dict[str, torch.Tensor]) -> None:
    loaded[EMBEDDINGS] = loaded[EMBEDDINGS][:-3].clone()


def spoilt(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(loaded: dict[str, torch.Tensor]) -> None:
        loaded[name].view(-1)[0] = value

    return change


def as_type(name: str, dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(loaded: dict[str, torch.Tensor]) -> None:
        loaded[name] = loaded[name].to(dtype)

    return change


LAYER = "encoder.layer.1.output.dense.weight"
FAULTS: dict[str, tuple[Spoil, str]] = {
    # the tokenizer
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        "there is no tokenizer in the source",
    ),
    "only settings": (remove("tokenizer.json"), "there is no tokenizer in the source"),
    "misnamed tokenizer": (
        rename("tokenizer.json", "tokenizer (1).json"),
        "there is no tokenizer in the source",
    ),
    "misnamed settings": (
        rename("tokenizer_config.json", "tokenizer-config.json"),
        "no tokenizer_config.json",
    ),
    "misnamed merges": (
        after(remove("tokenizer.json"), write("vocab.json", "{}"), write("merge.txt", "a b")),
        "there is no tokenizer in the source",
    ),
    "vocabulary without its case": (
        after(remove("tokenizer.json"), write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")),
        "says whether texts are lowered",
    ),
    "special token without id": (
        edit("tokenizer_config.json", mask_token="<brand new>"),
        "have no id for '<brand new>'",
    ),
    "added token beyond": (
        edit(
            "tokenizer_config.json",
            added_tokens_decoder={"90": {"content": "<new>", "special": True}},
        ),
        r"'?<new>'?",
    ),
    "vocabulary beyond": (
        after(tensors(short_table), edit("config.json", vocab_size=66)),
        "only 66 embeddings",
    ),
    "tokenizer is empty": (write("tokenizer.json", ""), "tokenizer.json is empty"),
    "tokenizer is a pointer": (write("tokenizer.json", POINTER), "pointer of git-lfs"),
    "tokenizer is cut": (cut("tokenizer.json"), "tokenizer.json is not JSON"),
    "tokenizer is a list": (write("tokenizer.json", "[]"), "no JSON object"),
    "tokenizer of nothing": (write("tokenizer.json", "{}"), "tokenizer cannot be read"),
    "settings are cut": (cut("tokenizer_config.json", 9), "tokenizer_config.json is not JSON"),
    "tokenizer with code": (
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", None]}),
        "needs code of its own",
    ),
    "sentencepiece alone": (
        after(
            remove("tokenizer.json"),
            write("sentencepiece.bpe.model", b"\x0a\x0b"),
            edit("tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer"),
        ),
        "its tokenizer",
    ),
    # the config
    "no config": (remove("config.json"), "no config.json"),
    "misnamed config": (rename("config.json", "bert_config.json"), "there is bert_config.json"),
    "config is empty": (write("config.json", ""), "config.json is empty"),
    "config is a pointer": (write("config.json", POINTER), "pointer of git-lfs"),
    "config is no JSON": (write("config.json", "<html>"), "config.json is not JSON"),
    "config is a list": (write("config.json", "[1]"), "no JSON object"),
    "config of no model": (edit("config.json", model_type=None), "no `model_type`"),
    "another model": (edit("config.json", model_type="gpt2"), "writes texts"),
    "an unknown model": (edit("config.json", model_type="mamba"), "cannot be a base"),
    "no heads": (edit("config.json", num_attention_heads=None), "num_attention_heads"),
    "no layers": (edit("config.json", num_hidden_layers=None), "num_hidden_layers"),
    "fewer layers": (edit("config.json", num_hidden_layers=1), "checkpoint has .*layer.1"),
    "more layers": (edit("config.json", num_hidden_layers=3), "checkpoint lacks .*layer.2"),
    "other width": (edit("config.json", intermediate_size=64), r"\(48,\) in .* \(64,\)|\(48, 32\)"),
    "other vocabulary": (edit("config.json", vocab_size=70), r"\(69, 32\) in the checkpoint"),
    "heads that do not divide": (edit("config.json", num_attention_heads=5), "gives no model"),
    "an odd type": (edit("config.json", hidden_size="32"), "hidden_size|does not take"),
    "quantised": (
        edit("config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "quantised already",
    ),
    "relative positions": (
        edit("config.json", position_embedding_type="relative_key"),
        "relative_key",
    ),
    "code of its own": (edit("config.json", auto_map={"AutoModel": "a.B"}), "auto_map"),
    "a class alone": (edit("config.json", architectures=5), "no list of names"),
    "a decoder": (edit("config.json", is_decoder=True), "decoder"),
    # the weights
    "no weights": (remove("model.safetensors"), "there are no weights"),
    "misnamed weights": (
        rename("model.safetensors", "weights.safetensors"),
        "only weights.safetensors",
    ),
    "TensorFlow's": (rename("model.safetensors", "tf_model.h5"), "only tf_model.h5"),
    "weights are empty": (write("model.safetensors", ""), "model.safetensors is empty"),
    "weights are a pointer": (write("model.safetensors", POINTER), "pointer of git-lfs"),
    "weights are cut": (cut("model.safetensors", 5000), "cut or damaged"),
    "weights are a page": (write("model.safetensors", "<html>" * 50), "cut or damaged"),
    "NaN": (tensors(spoilt(LAYER, float("nan"))), "layer.1.output.dense.weight has NaN"),
    "infinity": (
        tensors(spoilt(EMBEDDINGS, float("inf"))),
        "word_embeddings.weight has NaN or inf",
    ),
    "codes": (tensors(as_type(LAYER, torch.int8)), "is int8, not a float"),
    "float8": (tensors(as_type(LAYER, torch.float8_e4m3fn)), "is float8_e4m3fn, not a float"),
    "bin is cut": (after(as_bin, cut("pytorch_model.bin", 5000)), "is damaged"),
    "bin is empty": (after(as_bin, write("pytorch_model.bin", "")), "is empty"),
    "bin is a pointer": (after(as_bin, write("pytorch_model.bin", POINTER)), "git-lfs"),
    "bin is a page": (after(as_bin, write("pytorch_model.bin", "<html>")), "is damaged"),
    "bin of a list": (
        after(as_bin, lambda folder: torch.save([1], folder / "pytorch_model.bin")),
        "does not hold tensors by name",
    ),
    "a shard is missing": (
        after(as_shards, remove("model-00002-of-00002.safetensors")),
        "model-00002-of-00002.safetensors is missing",
    ),
    "a shard is a pointer": (
        after(as_shards, write("model-00001-of-00002.safetensors", POINTER)),
        "git-lfs",
    ),
    "the index is cut": (after(as_shards, cut("model.safetensors.index.json", 30)), "not JSON"),
    "the index lies": (
        after(
            as_shards,
            edit(
                "model.safetensors.index.json",
                weight_map={LAYER: "model-00001-of-00002.safetensors", "a": "../x"},
            ),
        ),
        "no file beside it",
    ),
    # sentence-transformers' files
    "pooling is empty": (write("1_Pooling/config.json", ""), "is empty"),
    "pooling is cut": (cut("1_Pooling/config.json", 9), "is not JSON"),
    "pooling is a pointer": (write("1_Pooling/config.json", POINTER), "git-lfs"),
    "pooling is a list": (write("1_Pooling/config.json", "[]"), "no JSON object"),
    "pooling is missing": (remove("1_Pooling/config.json"), "1_Pooling/config.json is missing"),
    "modules are cut": (after(listed, cut("modules.json", 9)), "modules.json is not JSON"),
    "modules are none": (after(listed, write("modules.json", "[]")), "begins with nothing"),
    "modules lead away": (
        after(listed, write("modules.json", '[{"type": "a.Transformer", "path": "../x"}]')),
        "no list of modules",
    ),
    "a Dense module": (
        after(
            listed,
            write(
                "modules.json",
                json.dumps(
                    [
                        {"type": "a.Transformer", "path": ""},
                        {"type": "a.Pooling", "path": "1_Pooling"},
                        {"type": "a.Dense", "path": "2_Dense"},
                    ]
                ),
            ),
        ),
        "Dense module comes after",
    ),
}
