"""Both graphs on codes say what transformers says with the same numbers; configs are read as it reads them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.models.t5.modeling_t5 import T5Attention

from base_model.decoder.check import open_graph
from base_model.seq2seq.families import FAMILIES, REFUSED, is_scaled, shape_of
from base_model.seq2seq.folder import seq2seq_source
from base_model.seq2seq.graph import decoder_graph, encoder_graph
from base_model.seq2seq.shape import Seq2SeqShape
from protocol.errors import ArtefactError
from protocol.seq2seq_manifest import SOURCE_MASK
from tests.unit.base_model.decoder.models import apart, float_weights, stored_of
from tests.unit.base_model.seq2seq.models import BART, KINDS, oracle, torch_logits, write_model

BOUND = 1e-4
BARE: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 50,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}


class Pair:
    """Both graphs, kept open."""

    def __init__(self, shape: Seq2SeqShape, stored: Any, folder: Path, *, slots: bool) -> None:
        self.sessions: list[ort.InferenceSession] = []
        for name, graph in (("encoder", encoder_graph), ("decoder", decoder_graph)):
            graph(shape, stored, slots=slots).save(folder / f"{name}.onnx", most=2**30)
            self.sessions.append(open_graph(folder / f"{name}.onnx"))
        self._empty = (shape.heads, 0, shape.head_size)

    def logits(self, ids: Any, mask: Any, pieces: list[tuple[Any, Any]]) -> list[Any]:
        """Of pieces (written, mask), one behind the other."""
        encoder, decoder = self.sessions
        names = [value.name for value in encoder.get_outputs()]
        read = dict(
            zip(names, encoder.run(names, {"input_ids": ids, "attention_mask": mask}), strict=True)
        )
        del read["states"]
        past = [v.name for v in decoder.get_inputs() if v.name.startswith("past_key_values.")]
        cache = dict.fromkeys(past, np.zeros((len(ids), *self._empty), np.float32))
        answers = []
        for written, seen in pieces:
            inputs = {"input_ids": np.array(written), "attention_mask": np.array(seen)}
            logits, *present = decoder.run(None, inputs | cache | read | {SOURCE_MASK: mask})
            cache = dict(zip(past, present, strict=True))
            answers.append(logits)
        return answers


def built(folder: Path, kind: str, *, slots: bool = True, **settings: Any) -> tuple[Any, ...]:
    source = seq2seq_source(str(write_model(folder / "source", kind, **settings)))
    shape = shape_of(source.config)
    stored = stored_of(shape, source, bits=4, embedding_bits=8)
    model = oracle(folder / "source", float_weights(shape, stored))
    return Pair(shape, stored, folder, slots=slots), model, shape


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {}) for kind in sorted(KINDS)),
        ("t5", {"feed_forward_proj": "gated-silu"}),
        ("t5", {"feed_forward_proj": "gelu", "num_decoder_layers": 1}),
        ("t5", {"d_model": 72, "d_kv": 24, "d_ff": 80, "layer_norm_epsilon": 1e-3}),  # ragged
        ("t5", {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}),
        ("bart", {"activation_function": "relu", "scale_embedding": False, "decoder_layers": 1}),
        ("bart", {"d_model": 96, "activation_function": "gelu_new"}),
    ],
)
def test_texts_of_unequal_length_give_what_transformers_gives(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Sources padded behind; what is written in three pieces, of which the first is padded too."""
    pair, model, shape = built(tmp_path, kind, slots=not settings, **settings)
    rng = np.random.default_rng(3)
    ids, mask = rng.integers(0, shape.vocabulary, (2, 45)), np.ones((2, 45), np.int64)
    mask[1, 30:] = 0
    written = rng.integers(0, shape.vocabulary, (2, 30))
    lengths = [20, 13]  # of the first piece
    first = np.array([[token if at < n else 0 for at, token in enumerate(row[:20])]
                      for row, n in zip(written, lengths, strict=True)])  # fmt: skip
    seen = np.array([[int(at < n) for at in range(20)] for n in lengths])
    later = np.stack([row[n : n + 10] for row, n in zip(written, lengths, strict=True)])
    ones = np.ones((2, 9), np.int64)
    pieces = [
        (first, seen),
        (later[:, :1], np.concatenate([seen, ones[:, :1]], 1)),
    ]
    answers = pair.logits(ids, mask, pieces)
    expected = torch_logits(model, ids, written, mask)
    for row, length in enumerate(lengths):
        assert apart(expected[row, length - 1], answers[0][row, 0]) < BOUND
        assert apart(expected[row, length], answers[1][row, 0]) < BOUND


def test_a_text_in_pieces_is_a_text_in_one(tmp_path: Path) -> None:
    pair, model, shape = built(tmp_path, "t5-1.1")
    rng = np.random.default_rng(4)
    ids, written = rng.integers(0, shape.vocabulary, (2, 1, 40))
    mask = np.ones_like(ids)
    ends = [0, 1, 2, 9, 10, 40]
    pieces = [
        (written[:, start:end], np.ones((1, end), np.int64))
        for start, end in itertools.pairwise(ends)
    ]
    parts = np.concatenate(pair.logits(ids, mask, pieces), 1)
    assert apart(torch_logits(model, ids, written)[:, np.array(ends[1:]) - 1], parts) < BOUND


@pytest.mark.parametrize(
    ("buckets", "distance"), [(32, 128), (8, 20), (4, 3), (64, 512), (7, 9), (33, 100), (16, 4096)]
)
def test_every_distance_has_the_bucket_that_transformers_gives_it(
    buckets: int, distance: int
) -> None:
    import torch

    shape = shape_of(
        BARE
        | {
            "relative_attention_num_buckets": buckets,
            "relative_attention_max_distance": distance,
        }
    )
    apart = np.arange(-distance - 9, distance + 10)
    for ahead in (True, False):
        expected = T5Attention._relative_position_bucket(
            torch.from_numpy(apart), ahead, buckets, distance
        )
        row = np.clip(apart, -distance, distance) + distance if ahead else None
        row = np.clip(-apart, 0, distance) if row is None else row
        assert shape.distances(ahead=ahead)[row].tolist() == expected.tolist()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_a_config_does_not_say_is_what_transformers_takes(family: str) -> None:
    bare = BARE | {"model_type": family, "num_layers": 3}
    if family == "bart":
        bare = BART | {"model_type": family, "vocab_size": 50, "d_model": 64}
        del bare["decoder_start_token_id"], bare["max_position_embeddings"]
    whole = AutoConfig.for_model(**bare)
    assert shape_of(bare) == shape_of(json.loads(json.dumps(whole.to_dict())))


@pytest.mark.parametrize(
    ("said", "scaled"),
    [
        ({}, True),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"model_type": "mt5"}, False),
    ],
)
def test_whether_logits_are_scaled(said: dict[str, Any], scaled: bool) -> None:
    """Old files and those of transformers 5 say it under two names."""
    assert is_scaled(BARE | said) is scaled
    if said.get("model_type") is None:
        config = AutoConfig.for_model(**(BARE | said))
        assert config.scale_decoder_outputs is scaled


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        *(({"model_type": name}, f"'{name}'.*{why[:20]}") for name, why in REFUSED.items()),
        ({"model_type": "bert"}, "'bert' cannot be a base"),
        ({"model_type": None}, "no `model_type`"),
        ({"feed_forward_proj": "gated-tanh"}, "`feed_forward_proj` is 'gated-tanh'"),
        ({"d_kv": 12}, "heads of 12 numbers"),
        ({"relative_attention_num_buckets": 3}, "relative positions of 3 buckets"),
        ({"relative_attention_max_distance": 16}, "over 16 tokens"),
        ({"relative_attention_max_distance": 2**17}, "over 131072 tokens"),
        ({"decoder_start_token_id": None}, "`decoder_start_token_id` is None"),
        ({"pad_token_id": 50}, "`pad_token_id` is 50"),
        ({"num_layers": 2000}, "`num_layers` is 2000"),
        ({"quantization_config": {}}, "`quantization_config` is {}"),
        ({"is_encoder_decoder": False}, "`is_encoder_decoder` is False"),
        ({"scale_decoder_outputs": "yes"}, "`scale_decoder_outputs` is 'yes'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ArtefactError, match=cause):
        shape_of(BARE | changes)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"decoder_attention_heads": 2}, "`encoder_attention_heads` and `decoder_attention_heads`"),
        ({"decoder_ffn_dim": 64}, "`encoder_ffn_dim` and `decoder_ffn_dim` differ"),
        ({"d_model": 62}, "62 numbers in 4 heads"),
        ({"d_model": 48}, "heads of 12 numbers"),
        ({"activation_function": "tanh"}, "`activation_function` is 'tanh'"),
        ({"scale_embedding": 2}, "`scale_embedding` is 2"),
    ],
)
def test_what_barts_are_not_supported(changes: dict[str, Any], cause: str) -> None:
    bare = BART | {"model_type": "bart", "vocab_size": 50, "d_model": 64}
    assert shape_of(bare).table == 98
    with pytest.raises(ArtefactError, match=cause):
        shape_of(bare | changes)


def test_a_bart_may_come_without_its_output_layer(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "bart")
    whole = seq2seq_source(str(folder)).tensors
    tensors = load_file(folder / "model.safetensors")
    inside = {name.removeprefix("model."): value for name, value in tensors.items()}
    inside.pop("final_logits_bias", None)
    save_file(inside, folder / "model.safetensors")
    part = seq2seq_source(str(folder))
    assert shape_of(part.config).tied
    assert set(part.tensors) == set(whole) - {"final_logits_bias"}
    stored_of(shape_of(part.config), part, bits=4, embedding_bits=8)


def test_a_bias_of_logits_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "bart")
    tensors = load_file(folder / "model.safetensors")
    tensors["final_logits_bias"] = tensors["model.shared.weight"][:, :1].T.clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArtefactError, match="final_logits_bias is not 0"):
        seq2seq_source(str(folder))


def changed(tensors: dict[str, Any], name: str, like: str, by: float = 0.0) -> None:
    tensors[name] = tensors[like].clone() + by


@pytest.mark.parametrize(
    ("change", "tied"),
    [
        (lambda tensors: None, True),
        (lambda tensors: changed(tensors, "lm_head.weight", "shared.weight"), True),
        (lambda tensors: changed(tensors, "lm_head.weight", "shared.weight", 1.0), False),
        (lambda tensors: changed(tensors, "encoder.embed_tokens.weight", "shared.weight"), True),
    ],
)
def test_the_checkpoint_says_whether_the_output_layer_is_its_own(
    change: Callable[[dict[str, Any]], None], tied: bool, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    source = seq2seq_source(str(folder))
    shape = shape_of(source.config)
    assert shape.tied is tied
    stored_of(shape, source, bits=4, embedding_bits=8)


def test_words_that_differ_between_the_stacks_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    changed(tensors, "decoder.embed_tokens.weight", "shared.weight", 1.0)
    save_file(tensors, folder / "model.safetensors")
    source = seq2seq_source(str(folder))
    with pytest.raises(ArtefactError, match=r"decoder\.embed_tokens\.weight differs"):
        stored_of(shape_of(source.config), source, bits=4, embedding_bits=8)


def test_the_first_token_may_be_in_the_settings_for_generation(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["decoder_start_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 7}))
    source = seq2seq_source(str(folder))
    assert source.begin == shape_of(source.config).start == 7
