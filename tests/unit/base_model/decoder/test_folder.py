"""A decoder's folder: every way it may lie, and every fault by its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from base_model.decoder.families import shape_of
from base_model.decoder.source import DecoderSource
from base_model.decoder.sources import decoder_source
from protocol.errors import ArtefactError
from tests.unit.base_model.decoder.models import (
    CHAT,
    apart,
    built_graph,
    oracle,
    torch_greedy,
    write_decoder,
)
from tests.unit.base_model.sources import as_shards


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("whole") / "source")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "source"))


def edited(folder: Path, name: str, **changes: Any) -> None:
    document = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    document |= changes
    (folder / name).write_text(json.dumps({k: v for k, v in document.items() if v != "gone"}))


def read(folder: Path) -> DecoderSource:
    source = decoder_source(str(folder))
    for name in source.tensors:
        source.tensors[name]
    return source


def test_shards_hold_what_one_file_holds(whole: Path, folder: Path) -> None:
    one, two = read(whole), read(Path(as_shards(folder)))
    assert set(one.tensors) == set(two.tensors)
    for name in one.tensors:
        assert np.array_equal(one.tensors[name], two.tensors[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_read_as_what_they_are(folder: Path, kind: torch.dtype) -> None:
    tensors = {n: t.to(kind) for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    source = read(folder)
    for name, tensor in tensors.items():
        assert np.array_equal(source.tensors[name], tensor.float().numpy())  # type: ignore[arg-type]


def test_ends_and_begin_come_from_all_files(folder: Path) -> None:
    assert (read(folder).begin, read(folder).ends) == (1, (2,))
    edited(folder, "generation_config.json", eos_token_id=[4, 2])
    edited(folder, "config.json", eos_token_id=7)
    edited(folder, "tokenizer_config.json", eos_token={"content": "<unk>"})
    assert read(folder).ends == (4, 2, 7, 0)
    edited(folder, "tokenizer.json", post_processor=None)
    assert read(folder).begin is None  # no text begins with it, whatever the config says
    edited(folder, "tokenizer_config.json", add_bos_token=True)
    assert read(folder).begin == 1


def test_the_chat_template_is_the_file_or_the_default_or_none(folder: Path) -> None:
    assert read(folder).chat_template == CHAT
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    edited(folder, "tokenizer_config.json", chat_template=named)
    assert read(folder).chat_template == "d"
    odd = [{"name": ["x"], "template": "x"}, {"name": "default", "template": "d"}]
    edited(folder, "tokenizer_config.json", chat_template=odd)
    assert read(folder).chat_template == "d"
    (folder / "chat_template.jinja").write_text("file")
    assert read(folder).chat_template == "file"
    (folder / "chat_template.jinja").unlink()
    edited(folder, "tokenizer_config.json", chat_template="gone")
    assert read(folder).chat_template is None


def test_an_old_config_means_the_same(folder: Path) -> None:
    new = shape_of(read(folder).config)
    theta = json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"]
    edited(folder, "config.json", rope_parameters="gone", rope_theta=theta, rope_scaling=None)
    edited(folder, "config.json", head_dim="gone", num_key_value_heads=2)
    assert shape_of(read(folder).config) == new


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"model_type": "mamba"}, "`?mamba.* has no attention"),
    "unknown kind": ({"model_type": "dancer"}, "cannot be a base that writes"),
    "no kind": ({"model_type": 3}, "no `model_type`"),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "stretched by 'yarn'"),
    "old yarn": ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "'dynamic'"),
    "part": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "new part": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "a part of each head",
    ),
    "no table": ({"rope_parameters": [1]}, "no table"),
    "activation": ({"hidden_act": "xielu"}, "'xielu', which is not supported"),
    "activation of another kind": ({"hidden_act": ["silu"]}, "not supported"),
    "odd heads": ({"head_dim": 13}, "multiple of 8"),
    "groups": ({"num_key_value_heads": 3}, "cannot share"),
    "no size": ({"hidden_size": None}, "`hidden_size` is None"),
    "negative": ({"num_hidden_layers": -1}, "`num_hidden_layers` is -1"),
    "huge": ({"vocab_size": 2**40}, "not a whole number"),
    "layers": ({"num_hidden_layers": 5000}, "5000 layers"),
    "epsilon": ({"rms_norm_eps": "small"}, "not a number above 0"),
    "flag": ({"tie_word_embeddings": "yes"}, "not true or false"),
    "quantised": ({"quantization_config": {"bits": 4}}, "`quantization_config`"),
    "code": ({"auto_map": {"AutoModel": "x.Y"}}, "`auto_map`"),
    "window": (
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": None,
        },
        "does not say in which layers",
    ),
    "no rope": ({"model_type": "smollm3", "no_rope_layers": [1]}, "no list of all layers"),
    "both ways": ({"model_type": "gemma2", "use_bidirectional_attention": True}, "bidirectional"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_a_config_that_is_not_supported_is_refused_by_name(folder: Path, case: str) -> None:
    changes, cause = REFUSED[case]
    edited(folder, "config.json", **changes)
    with pytest.raises(ArtefactError, match=cause) as refused:
        read(folder)
    assert refused.value.remedy


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.example/spec/v1\noid 1")


def lacking_shard(folder: Path) -> None:
    as_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def listed_elsewhere(folder: Path) -> None:
    as_shards(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = dict.fromkeys(index["weight_map"], "model-00001-of-00002.safetensors")
    names["model.norm.weight"] = "model-00002-of-00002.safetensors"
    names["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index["weight_map"] = names
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_number(value: float, kind: torch.dtype) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][3] = value
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(kind)
        save_file(tensors, folder / "model.safetensors")

    return change


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (cut, "cut or damaged"),
    "pointer": (pointer, "git-lfs"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "there are no weights"),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "read from safetensors only",
    ),
    "no shard": (lacking_shard, "is missing"),
    "wrong shard": (listed_elsewhere, "which the index says"),
    "infinite": (with_number(float("inf"), torch.float32), "NaN or infinity"),
    "whole numbers": (with_number(1.0, torch.int32), "not a float weight"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config cut": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "tokenizer of nothing": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be used"),
    "settings": (lambda f: (f / "tokenizer_config.json").write_text("[]"), "no JSON object"),
    "template": (lambda f: edited(f, "tokenizer_config.json", chat_template=3), "is no text"),
    "huge number": (lambda f: edited(f, "config.json", rms_norm_eps=10**400), "rms_norm_eps"),
    "ends": (lambda f: edited(f, "generation_config.json", eos_token_id=["x"]), "is no token"),
    "few embeddings": (lambda f: edited(f, "config.json", vocab_size=40), "only 40 embeddings"),
    "pipe": (
        lambda f: (
            (f / "generation_config.json").unlink(),
            os.mkfifo(f / "generation_config.json"),
        ),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("case", sorted(DAMAGED))
def test_a_damaged_folder_is_refused_by_name(folder: Path, case: str) -> None:
    change, cause = DAMAGED[case]
    change(folder)
    with pytest.raises(ArtefactError, match=cause):
        read(folder)


@pytest.mark.skipif("FEDGE_SHARED" not in os.environ, reason="the model lies in $FEDGE_SHARED")
def test_a_trained_model_tells_a_story(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    folder = Path(os.environ["FEDGE_SHARED"]) / "models" / "stories260k"
    source = decoder_source(str(folder))
    graph, _ = built_graph(source, tmp_path / "graph", bits=32, embedding_bits=32)
    tokenizer = Tokenizer.from_str(source.tokenizer)
    ids = tokenizer.encode("Once upon a time").ids
    assert ids[0] == source.begin == 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0].tolist()
    tokens, seen = graph.greedy(ids, 64)
    assert tokens == expected[len(ids) :]
    assert apart(model(torch.tensor([ids])).logits[0, -1].detach().numpy(), seen[0]) < 1e-4
    assert "little girl" in tokenizer.decode([*ids, *tokens])
    coded, floats = built_graph(source, tmp_path / "coded")
    expected, reference = torch_greedy(oracle(folder, floats), ids, 64)
    tokens, seen = coded.greedy(ids, 64)
    assert tokens == expected
    assert max(map(apart, reference, seen)) < 1e-4
