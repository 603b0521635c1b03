"""What PEFT methods promise on bases that write text: peft's folder and a device give the same logits."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from base_model.decoder.build import build_decoder
from base_model.decoder.families import shape_of
from base_model.decoder.products import Stores
from base_model.decoder.shape import DecoderShape
from base_model.decoder.sources import decoder_source
from base_model.decoder.torch_model import opened_adapter
from base_model.programs.build import GRADIENT
from base_model.programs.language import language_graph
from base_model.programs.session import open_session
from base_model.programs.token_loss import TARGET
from edge_runtime.decoder.adapters import load_decoder_adapter
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.errors import ArtefactError
from protocol.forms import SOFT_PROMPT
from protocol.layout import Tensors
from protocol.manifest import Linear
from protocol.methods import METHODS, method_of
from protocol.methods.base import Method
from protocol.methods.hybrid import HybridSettings
from protocol.peft_format import Published, from_peft, to_edge, to_peft
from tests.methods import SETTINGS
from tests.unit.audit.small_bases import small_writing
from tests.unit.base_model.decoder.models import (
    apart,
    float_weights,
    oracle,
    stored_of,
    write_decoder,
)

IDS = [1, 5, 9, 13, 22, 40, 7]


@dataclass(frozen=True, kw_only=True)
class Writer:
    base: DecoderBase
    model: PreTrainedModel
    shape: DecoderShape
    stored: Stores


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """Two families: in the second, heads are not as wide as hidden states are over their number."""
    folder = tmp_path_factory.mktemp(request.param)
    source = decoder_source(str(write_decoder(folder / "source", request.param)))
    build_decoder(source, bits=4, out=folder / "base")
    shape = shape_of(source.config)
    stored = stored_of(shape, source, bits=4, embedding_bits=8)
    return Writer(
        base=DecoderBase.open(folder / "base", threads=1),
        model=oracle(folder / "source", float_weights(shape, stored)),
        shape=shape,
        stored=stored,
    )


def settings_of(name: str) -> Any:
    if name == "hybrid":  # of factors and a prefix: with a prompt it is compared on bases that sort
        members = [{"method": "lora", "rank": 4}, {"method": "prefix", "tokens": 5}]
        return HybridSettings.model_validate({"members": members})
    settings = METHODS[name].settings
    own = {"targets": "all-linear"} if "targets" in settings.model_fields else {}
    return settings(**{"method": name} | SETTINGS[name] | own)


def method_named(name: str) -> Method[Any]:
    return method_of(settings_of(name))


def _writing() -> list[str]:
    """Methods that a base which writes text takes: its graph has low-rank slots and a soft prompt's."""
    small = small_writing()
    linears = [Linear(path="m.0.q_proj", in_features=32, out_features=32)]
    slots = [slot for slot in small.graph.slots if slot.name == SOFT_PROMPT]
    graph = small.graph.model_copy(update={"slots": slots})
    manifest = small.model_copy(update={"linears": linears, "graph": graph})
    remarks = {n: method_named(n).remarks(settings_of(n), manifest) for n in METHODS}
    return [name for name, said in remarks.items() if "error" not in {kind for kind, *_ in said}]


WRITING = _writing()


def random_tensors(writer: Writer, name: str) -> Tensors:
    specs = method_named(name).specs(settings_of(name), writer.base.manifest)
    rng = np.random.default_rng(5)
    return {s.name: rng.normal(0, 0.2, s.shape).astype(np.float32) for s in specs}


def peft_logits(writer: Writer, name: str, tensors: Tensors, folder: Path) -> Any:
    """By peft, of the folder that holds the adapter."""
    published = Published.by(settings_of(name))
    config = method_named(name).peft_config(settings_of(name), writer.base.manifest)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"task_type": "CAUSAL_LM", "inference_mode": True})
    )
    save_file(to_peft(tensors, method=published.method), folder / "adapter_model.safetensors")
    model = opened_adapter(copy.deepcopy(writer.model), folder)
    ids = torch.tensor([IDS])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]


@pytest.mark.parametrize("name", WRITING)
def test_what_is_published_answers_in_peft_and_on_a_device(
    writer: Writer, name: str, tmp_path: Path
) -> None:
    method, tensors = method_named(name), random_tensors(writer, name)
    specs = list(method.specs(settings_of(name), writer.base.manifest))
    published_specs = method.published_specs(specs, writer.base.manifest)
    plain = method.published(tensors, list(published_specs))
    slots = to_edge(plain, published=Published.by(settings_of(name)))
    write_edge_adapter(slots, tmp_path / "a.onnx_adapter")
    adapter = load_decoder_adapter(tmp_path / "a.onnx_adapter", writer.base)
    logits = Cache(writer.base, adapter).follow(IDS)
    expected = peft_logits(writer, name, plain, tmp_path / "peft")
    assert apart(expected.detach().numpy(), logits) < 1e-4
    assert adapter.positions == method.tokens(settings_of(name))
    assert apart(Cache(writer.base).follow(IDS), logits) > 0.01


@pytest.mark.parametrize("name", WRITING)
def test_every_tensor_that_is_trained_has_a_gradient(writer: Writer, name: str) -> None:
    method, tensors = method_named(name), random_tensors(writer, name)
    constants = method.constants(settings_of(name))
    trained = [
        spec.name
        for spec in method.specs(settings_of(name), writer.base.manifest)
        if any(spec.part in turn for turn in method.turns)
    ]
    model = language_graph(
        writer.shape,
        writer.stored,
        tensors={key: value.ndim for key, value in tensors.items()},
        trained=trained,
        forms=lambda symbols: method.forms(symbols, constants),
    )
    session = open_session(model.SerializeToString(), Path(), threads=1)
    ids = np.array([IDS])
    targets = np.array([[*IDS[1:], -100]])
    rows = {"input_ids": ids, "attention_mask": np.ones_like(ids), TARGET: targets}
    gradients = session.run([GRADIENT + key for key in trained], rows | tensors)
    for key, gradient in zip(trained, gradients, strict=True):
        assert gradient.shape == tensors[key].shape
        assert np.abs(gradient).max() > 0, key


@pytest.mark.parametrize("name", WRITING)
def test_names_are_one_to_one_and_parts_are_those_of_turns(writer: Writer, name: str) -> None:
    method = method_named(name)
    specs = list(method.specs(settings_of(name), writer.base.manifest))
    assert {spec.part for spec in specs} == set(method.free)
    assert frozenset().union(*method.turns) <= set(method.free)
    published = list(method.published_specs(specs, writer.base.manifest))
    plain = method.published(random_tensors(writer, name), published)
    reader = Published.by(settings_of(name)).method
    saved = to_peft(plain, method=reader)
    back = from_peft(saved, method=reader)
    assert back.keys() == plain.keys()
    assert all(back[key].tobytes() == plain[key].tobytes() for key in plain)
    with pytest.raises(ArtefactError, match="is not known"):
        from_peft(saved | {"other": np.zeros(1, np.float32)}, method=reader)


def test_every_method_that_is_theirs_alone_is_tried() -> None:
    assert {name for name, method in METHODS.items() if method.writes} <= set(WRITING)
