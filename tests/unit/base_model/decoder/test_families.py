"""Every family of the registry: the graph on codes says what transformers says with the same numbers."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, PreTrainedModel

from base_model.decoder.build import build_decoder
from base_model.decoder.families import FAMILIES, shape_of
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import DecoderSource
from base_model.decoder.sources import decoder_source
from base_model.slot_check import verify_slots
from base_model.verify import verify_base
from protocol.decoder_manifest import DecoderManifest
from protocol.forms import DOWN, SOFT_PROMPT, UP
from tests.unit.base_model.decoder.models import (
    PARTICULAR,
    Cache,
    Graph,
    apart,
    built_graph,
    oracle,
    prefix_cache,
    torch_followed,
    torch_greedy,
    write_decoder,
)

BOUND = 1e-4
PROMPT = [1, 5, 9, 13, 22, 40, 7, 33, 21, 60, 3, 4]


@dataclass(frozen=True, kw_only=True)
class Both:
    source: DecoderSource
    shape: DecoderShape
    graph: Graph
    model: PreTrainedModel


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp(request.param)
    source = decoder_source(str(write_decoder(folder / "source", request.param)))
    graph, floats = built_graph(source, folder / "graph")
    return Both(
        source=source,
        shape=shape_of(source.config),
        graph=graph,
        model=oracle(folder / "source", floats),
    )


def torch_logits(model: PreTrainedModel, ids: list[int]) -> Any:
    return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def test_every_family_is_tried_with_what_is_particular_about_it() -> None:
    assert set(PARTICULAR) == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_a_config_does_not_say_is_what_transformers_takes(family: str) -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings")
    bare: dict[str, Any] = {
        "model_type": family,
        **dict.fromkeys(sizes, 512),
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
    }
    whole = AutoConfig.for_model(**bare)
    assert shape_of(bare) == shape_of(json.loads(json.dumps(whole.to_dict())))


def test_it_is_built_as_what_numpy_makes_of_it_and_verified(both: Both, tmp_path: Path) -> None:
    build_decoder(both.source, bits=4, out=tmp_path / "base")
    manifest = verify_base(tmp_path / "base")
    verify_slots(tmp_path / "base", manifest)
    assert isinstance(manifest, DecoderManifest)
    assert manifest.family == both.shape.family
    assert manifest.cache_names()[0] == ("past_key_values.0.key", "present.0.key")


def test_it_writes_the_same_sixty_four_tokens_by_the_same_logits(both: Both) -> None:
    expected, reference = torch_greedy(both.model, PROMPT, 64)
    tokens, seen = both.graph.greedy(PROMPT, 64)
    assert max(map(apart, reference, seen)) < BOUND
    assert tokens == expected


def test_a_text_in_two_pieces_is_a_text_in_one(both: Both) -> None:
    whole, cache = both.graph.run([PROMPT], both.graph.empty())
    expected = torch_logits(both.model, PROMPT)
    assert apart(expected[-1:], whole[0]) < BOUND
    assert apart(expected, both.graph.every(PROMPT)) < BOUND
    first, begun = both.graph.run([PROMPT[:5]], both.graph.empty())
    second, grown = both.graph.run([PROMPT[5:]], begun)
    assert apart(expected[4:5], first[0]) < BOUND
    assert apart(expected[-1:], second[0]) < BOUND
    assert max(apart(cache[name], grown[name]) for name in cache) < BOUND


def test_texts_of_unequal_length_padded_at_their_ends_do_not_see_one_another(both: Both) -> None:
    texts = [PROMPT, PROMPT[3:8]]
    padded, length = [texts[0], texts[1] + [0] * 7], len(PROMPT)
    mask = [[1] * length, [1] * 5 + [0] * 7]
    logits, cache = both.graph.run(padded, both.graph.empty(2), mask)
    after, _ = both.graph.run([[8], [8]], cache, [[*row, 1] for row in mask])
    for row, text in enumerate(texts):
        expected = torch_logits(both.model, [*text, 8])
        assert apart(expected[-2], logits[row, 0]) < BOUND
        assert apart(expected[-1], after[row, 0]) < BOUND


def test_factors_in_the_slots_act_as_they_do_in_torch_and_leave_nothing_behind(
    both: Both,
) -> None:
    rng, before = np.random.default_rng(1), both.graph.greedy(PROMPT, 8)
    changed = copy.deepcopy(both.model)
    for linear in both.shape.linears():
        rank = 1 + len(both.graph.filled) % 3  # each has a rank of its own
        down = rng.normal(0, 0.2, (linear.in_features, rank)).astype(np.float32)
        up = rng.normal(0, 0.2, (rank, linear.out_features)).astype(np.float32)
        both.graph.filled |= {linear.path + DOWN: down, linear.path + UP: up}
        changed.get_submodule(linear.path).weight += torch.from_numpy((down @ up).T.copy())
    try:
        tokens, seen = both.graph.greedy(PROMPT, 64)
    finally:
        both.graph.filled.clear()
    expected = torch_followed(changed, PROMPT, tokens)
    assert max(map(apart, expected, seen)) < BOUND
    assert tokens == [int(logits.argmax()) for logits in expected]
    assert apart(torch_logits(both.model, PROMPT)[-1], expected[0]) > 0.1
    after = both.graph.greedy(PROMPT, 8)
    assert after[0] == before[0]
    assert np.array_equal(after[1], before[1])


def peft_model(model: PreTrainedModel, kind: type[PeftConfig], table: Any) -> PeftModel:
    """The model with a prompt or a prefix, which peft keeps in one table."""
    config = kind(num_virtual_tokens=len(table), task_type="CAUSAL_LM")  # type: ignore[call-arg]
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    adapted.prompt_encoder["default"].embedding.weight.data.copy_(torch.from_numpy(table))
    return adapted


def prompted(both: Both) -> tuple[PeftModel, list[int]]:
    """peft's model with a soft prompt that fills the graph's slot, and the ids that begin a text with it."""
    rng, size = np.random.default_rng(3), (5, both.shape.hidden)
    table = rng.normal(0, 0.5, size).astype(np.float32)
    both.graph.filled[SOFT_PROMPT] = table
    own = [both.shape.vocabulary + row for row in range(len(table))]
    return peft_model(both.model, PromptTuningConfig, table), own


def prefixed(both: Both) -> tuple[PeftModel, Cache]:
    """peft's model with a prefix, and the cache that holds it."""
    rng, size = np.random.default_rng(4), (5, both.shape.layers * 2 * both.shape.key_size)
    table = rng.normal(0, 0.7, size).astype(np.float32)
    return peft_model(both.model, PrefixTuningConfig, table), prefix_cache(table, both.shape)


@pytest.mark.parametrize("form", ["prompt", "prefix"])
def test_a_prompt_and_a_prefix_act_as_they_do_in_peft_and_leave_nothing_behind(
    both: Both, form: str
) -> None:
    before, own, begun = both.graph.greedy(PROMPT, 8), list[int](), both.graph.empty()
    try:
        if form == "prompt":
            adapted, own = prompted(both)
        else:
            adapted, begun = prefixed(both)
        tokens, seen = both.graph.greedy([*own, *PROMPT], 64, begun)
        whole, cache = both.graph.run([[*own, *PROMPT]], begun)
        _, part = both.graph.run([[*own, *PROMPT][:3]], begun)
        second, grown = both.graph.run([[*own, *PROMPT][3:]], part)
    finally:
        both.graph.filled.clear()
    expected = torch_followed(adapted, PROMPT, tokens)
    assert max(map(apart, expected, seen)) < BOUND
    assert tokens == [int(logits.argmax()) for logits in expected]
    assert apart(whole[0, -1], second[0, -1]) < BOUND
    assert max(apart(cache[name], grown[name]) for name in cache) < BOUND
    assert apart(torch_logits(both.model, PROMPT)[-1], expected[0]) > 0.01
    after = both.graph.greedy(PROMPT, 8)
    assert after[0] == before[0]
    assert np.array_equal(after[1], before[1])


def test_a_prompt_of_words_is_these_words(both: Both) -> None:
    """Its rows are the table's, with the scale that words have and a prompt has not."""
    table = both.model.get_input_embeddings().weight.detach().numpy()
    words, scale = PROMPT[:4], both.shape.embedding_scale / both.shape.prompt_scale
    both.graph.filled[SOFT_PROMPT] = table[words] * np.float32(scale)
    own = [both.shape.vocabulary + row for row in range(4)]
    try:
        logits, _ = both.graph.run([[*own, *PROMPT[4:]]], both.graph.empty())
        with pytest.raises(Exception, match="indices element out of data bounds"):  # ONNX Runtime's
            both.graph.run([[both.shape.vocabulary + 4]], both.graph.empty())
    finally:
        both.graph.filled.clear()
    expected, _ = both.graph.run([PROMPT], both.graph.empty())
    assert apart(expected[0, -1], logits[0, -1]) < 1e-6


def test_rows_of_a_batch_begin_with_prompts_of_their_own(both: Both) -> None:
    """Two prompts in the one slot, texts of unequal length, padded at their ends."""
    try:
        adapted, own = prompted(both)
        second = np.random.default_rng(6).normal(0, 0.5, (3, both.shape.hidden)).astype(np.float32)
        both.graph.filled[SOFT_PROMPT] = np.concatenate([both.graph.filled[SOFT_PROMPT], second])
        others = [both.shape.vocabulary + row for row in (5, 6, 7)]
        begun = [[*own, *PROMPT], [*others, *PROMPT[3:8]]]
        mask = [[1] * 17, [1] * 8 + [0] * 9]
        padded = [begun[0], begun[1] + [0] * 9]
        _, cache = both.graph.run(padded, both.graph.empty(2), mask)
        after, cache = both.graph.run([[8], [9]], cache, [[*row, 1] for row in mask])
        later, _ = both.graph.run([[7], [7]], cache, [[*row, 1, 1] for row in mask])
    finally:
        both.graph.filled.clear()
    models = adapted, peft_model(both.model, PromptTuningConfig, second)
    texts = [*PROMPT, 8], [*PROMPT[3:8], 9]
    for row, (model, text) in enumerate(zip(models, texts, strict=True)):
        expected = torch_followed(model, text, [7, 7])
        assert apart(expected[0], after[row, 0]) < BOUND
        assert apart(expected[1], later[row, 0]) < BOUND


def test_a_graph_with_slots_that_nothing_fills_is_one_without(both: Both, tmp_path: Path) -> None:
    bare, _ = built_graph(both.source, tmp_path / "graph", slots=False)
    expected, _ = bare.run([PROMPT], bare.empty())
    logits, _ = both.graph.run([PROMPT], both.graph.empty())
    assert np.array_equal(logits, expected)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"head_dim": 8}),  # the operator does not turn heads of less than 16
        ("qwen3", {"head_dim": 24, "hidden_size": 72}),  # blocks that are not whole
        (
            "llama",
            {
                "num_key_value_heads": 4,
                "tie_word_embeddings": True,
                "hidden_size": 72,
                "head_dim": 16,
            },
        ),
        ("llama", {"hidden_act": "gelu"}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 100.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 2.0,
                    "original_max_position_embeddings": 24,
                }
            },
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                }
            },
        ),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 5,
                "layer_types": ["full_attention", "sliding_attention"],
            },
        ),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}),
        ("gemma", {"hidden_act": "gelu"}),
        ("olmo2", {"attention_bias": True}),
    ],
)
def test_what_a_config_may_say_besides(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    folder = write_decoder(tmp_path / "source", family, **settings)
    graph, floats = built_graph(decoder_source(str(folder)), tmp_path / "graph", slots=False)
    long = [token % 60 + 3 for token in range(0, 60 * 7, 7)]
    logits, _ = graph.run([long], graph.empty())
    assert apart(torch_logits(oracle(folder, floats), long)[-1:], logits[0]) < BOUND
