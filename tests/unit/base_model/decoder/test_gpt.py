"""The GPT family: checkpoints of every age, texts up to the end of a table, adapters of peft's, real models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from base_model.decoder.build import build_decoder
from base_model.decoder.families import shape_of
from base_model.decoder.parity import decoder_parity
from base_model.decoder.sources import decoder_source
from base_model.decoder.stored import stored_weights
from base_model.decoder.torch_model import torch_decoder
from base_model.parity import Bounds
from base_model.release import published_of, read_peft
from base_model.verify import read_manifest
from client.data import Rows
from client.training import train
from client.worker import Worker
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.errors import ArtefactError
from protocol.peft_format import to_edge
from protocol.plan import plan_from
from tests.unit.base_model.decoder.models import (
    apart,
    built_graph,
    oracle,
    torch_greedy,
    write_decoder,
)
from tests.unit.base_model.sources import WORDS_64

BOUND = 1e-4
TEXTS = [" ".join(WORDS_64[at : at + 9]) for at in range(0, 40, 5)]


def stored_of(folder: Path) -> dict[str, Any]:
    source = decoder_source(str(folder))
    return stored_weights(
        shape_of(source.config),
        source.tensors,
        bits=32,
        embedding_bits=32,
        tell=lambda _step, _share: None,
    ).tensors


def renamed(folder: Path, names: Any) -> None:
    path = folder / "model.safetensors"
    tensors = {names(name): value for name, value in load_file(path).items()}
    save_file({name: value for name, value in tensors.items() if name}, path)


def verify_same(folder: Path, before: dict[str, Any]) -> None:
    after = stored_of(folder)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_a_checkpoint_of_the_model_without_its_output_layer_is_the_same(
    family: str, tmp_path: Path
) -> None:
    """As the first GPT-2 lies on the Hub, with the masks of its attention."""
    folder = write_decoder(tmp_path / "source", family, tie_word_embeddings=True)
    before = stored_of(folder)
    renamed(folder, lambda name: name.removeprefix("transformer."))
    path, block = folder / "model.safetensors", "attn.attention" if family == "gpt_neo" else "attn"
    masks = {f"h.{layer}.{block}.bias": np.ones((1, 1, 8, 8), np.uint8) for layer in range(2)}
    masks[f"h.0.{block}.masked_bias"] = np.array(-1e9, np.float32)
    save_file(load_file(path) | masks, path)
    verify_same(folder, before)


def test_the_output_layer_may_have_the_models_own_name(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "source", "gpt_neox")
    before = stored_of(folder)
    renamed(folder, lambda name: name.replace("embed_out", "lm_head"))
    path = folder / "model.safetensors"
    buffers = {
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": np.ones(4, np.float32),
        "gpt_neox.layers.0.attention.bias": np.ones((1, 1, 8, 8), np.uint8),
        "gpt_neox.layers.0.attention.masked_bias": np.array(-1e9, np.float32),
    }
    save_file(load_file(path) | buffers, path)
    verify_same(folder, before)


def test_a_tensor_by_two_names_is_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "source", "gpt_neox")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["embed_out.weight"]}, path)
    with pytest.raises(ArtefactError, match="a second time, by another name"):
        stored_of(folder)


def test_a_bare_llama_is_the_same(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "source", tie_word_embeddings=True)
    before = stored_of(folder)
    renamed(folder, lambda name: name.removeprefix("model."))
    verify_same(folder, before)


def test_linears_of_a_base_lie_as_out_and_in(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "source", "gpt2")
    stored = stored_of(folder)
    theirs = load_file(folder / "model.safetensors")
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        path = f"transformer.h.1.{name}.weight"
        assert np.array_equal(stored[path], theirs[path].T)


def test_a_checkpoint_of_half_the_names_is_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "source", "gpt2")
    renamed(folder, lambda name: name.removeprefix("transformer.h."))
    with pytest.raises(ArtefactError, match=r"transformer\.h\.0\.\S+ is not in the checkpoint"):
        stored_of(folder)


@pytest.mark.parametrize(
    ("family", "changes", "cause"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"activation_function": "relu"}, "'relu', which is not supported"),
        ("gpt2", {"n_head": 3}, "3 heads do not divide 64"),
        ("gpt2", {"n_head": 16}, "multiple of 8"),
        ("gpt_neox", {"head_dim": 8}, "another size than a row's share"),
        ("gpt2", {"n_layer": 5000}, "5000 layers"),
        ("gpt_neo", {"attention_types": [["global", 2]]}, "other than `global` or `local`"),
        ("gpt_neo", {"attention_types": [[["global"], 3]]}, "for 2 layers"),
        ("gpt_neo", {"attention_types": [[["near"], 2]]}, "other than `global` or `local`"),
        ("gpt_neo", {"attention_types": [[["global"], -2]]}, "no lists of kinds"),
        ("gpt_neo", {"attention_types": 3}, "no lists of kinds"),
        ("gpt_neo", {"attention_types": None}, "for 2 layers"),
        ("gpt_neo", {"window_size": 0}, "`window_size` is 0"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.3}}, "4 of 16 numbers"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 1.5}}, "24 of 16 numbers"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 1e300}}, "32 of 16 numbers"),
        ("gpt_neox", {"rope_parameters": [1]}, "no table"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "yarn"}}, "stretched by 'yarn'"),
        ("gpt_neox", {"use_parallel_residual": 1}, "not true or false"),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_name(
    family: str, changes: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    folder = write_decoder(tmp_path / "source", family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ArtefactError, match=cause) as refused:
        decoder_source(str(folder))
    assert refused.value.remedy


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_a_text_may_be_as_long_as_the_table(family: str, tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "source", family, max_position_embeddings=24)
    graph, floats = built_graph(decoder_source(str(folder)), tmp_path / "graph")
    ids = [token % 60 + 3 for token in range(0, 24 * 7, 7)]
    model = oracle(folder, floats)
    first, cache = graph.run([ids[:9]], graph.empty())
    second, _ = graph.run([ids[9:]], cache)
    expected = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    assert apart(expected[-1], second[0, -1]) < BOUND
    assert apart(expected[8], first[0, -1]) < BOUND


def test_a_shorter_context_leaves_the_table_whole(tmp_path: Path) -> None:
    source = decoder_source(str(write_decoder(tmp_path / "source", "gpt2")))
    whole = build_decoder(source, bits=4, out=tmp_path / "whole")
    short = build_decoder(source, bits=4, out=tmp_path / "short", context=20)
    assert (whole.max_positions, short.max_positions) == (96, 20)
    assert short.fingerprint == whole.fingerprint
    assert short.parameters == whole.parameters


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose queries, keys and values are one matrix."""
    folder = tmp_path_factory.mktemp(request.param)
    source = decoder_source(str(write_decoder(folder / "source", request.param)))
    build_decoder(source, bits=4, out=folder / "base")
    return folder / "base"


def test_an_adapter_that_peft_saved_is_the_devices(base: Path, tmp_path: Path) -> None:
    plain = torch_decoder(base)
    targets = [linear.path for linear in read_manifest(base).linears]
    turned = type(plain.get_submodule(targets[0])).__name__ == "Conv1D"
    config = LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=turned)
    model = get_peft_model(plain, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path / "adapter")
    tensors = read_peft(tmp_path / "adapter")
    assert len(tensors) == 2 * len(targets)
    edge = tmp_path / "edge.onnx_adapter"
    write_edge_adapter(to_edge(tensors, published=published_of(tmp_path / "adapter")), edge)
    parity = decoder_parity(base, tmp_path / "adapter", edge, TEXTS, Bounds(relative=BOUND))
    assert parity.max_relative < BOUND
    assert parity.tokens == (64, 64)


def test_a_site_scores_and_trains_as_transformers_does(base: Path) -> None:
    manifest = read_manifest(base)
    document = {
        "name": "t",
        "seed": 3,
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"kind": "causal-lm", "max_length": 32, "form": "text"},
        "adapter": {"rank": 2, "targets": "all-linear"},
        "rule": {"name": "mean"},
        "local": {"batch_size": 8, "learning_rate": 0.01},
    }
    site = Worker(plan_from(document, source="test"), base)
    rows = site.encode(Rows(texts=TEXTS, targets=[""] * len(TEXTS)))
    score = site.score(site.recipe.start(), rows)
    model, loss = torch_decoder(base), 0.0
    for row in range(len(rows)):
        ids = rows.ids[rows.offsets[row] : rows.offsets[row + 1]]
        targets = rows.targets[rows.offsets[row] : rows.offsets[row + 1]]
        logits = model(input_ids=torch.from_numpy(ids[None].astype(np.int64))).logits[0]
        wanted = torch.from_numpy(targets[targets >= 0].astype(np.int64))
        of_row = torch.nn.functional.cross_entropy(logits[targets >= 0], wanted, reduction="sum")
        loss += of_row.item()
    assert score.loss == pytest.approx(loss, rel=1e-5)
    start, parts = site.recipe.start(), site.recipe.parts(1)
    after = train(site.engine, start, rows, local=site.plan.local, parts=parts, seed=0, epochs=1)
    assert (after.steps, after.examples) == (1, len(TEXTS))
    assert after.loss_sum / after.examples == pytest.approx(loss / score.tokens, rel=1e-5)
    moved = {
        name for name, value in start.items() if not np.array_equal(value, after.tensors[name])
    }
    assert moved == {
        name for name in start if name.endswith("lora_B")
    }  # the others' are 0 at first


@pytest.mark.skipif("FEDGE_SHARED" not in os.environ, reason="the model lies in $FEDGE_SHARED")
def test_a_trained_model_chats(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = Path(os.environ["FEDGE_SHARED"]) / "models" / "tinystories-neo-3m-chat"
    source = decoder_source(str(folder))
    assert (source.begin, source.ends, source.chat_template) == (None, (14018,), None)
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    graph, _ = built_graph(source, tmp_path / "graph", bits=32, embedding_bits=32)
    coded, floats = built_graph(source, tmp_path / "coded")
    tokenizer = Tokenizer.from_str(source.tokenizer)
    ids = tokenizer.encode("Once upon a time").ids
    for ours, theirs in ((graph, model), (coded, oracle(folder, floats))):
        expected, reference = torch_greedy(theirs, ids, 64)
        tokens, seen = ours.greedy(ids, 64)
        assert tokens == expected
        assert max(map(apart, reference, seen)) < BOUND
        assert "little girl" in tokenizer.decode([*ids, *tokens])
