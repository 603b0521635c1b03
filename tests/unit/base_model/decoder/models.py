"""Tiny random decoders of every family, as transformers writes them, and what transformers makes of a base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto import AutoConfig

from base_model.decoder.check import open_graph
from base_model.decoder.checkpoint_names import turned_weights
from base_model.decoder.families import shape_of
from base_model.decoder.gpt import GPT
from base_model.decoder.graph import generating_graph
from base_model.decoder.products import Stores
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import DecoderSource
from base_model.decoder.stored import floats_of, stored_weights
from base_model.seq2seq.shape import Seq2SeqShape
from protocol.joined import Joined, joined_tensors
from protocol.manifest import Linear
from tests.unit.base_model.sources import WORDS_64

# What makes a tiny model of a family unlike a tiny llama, beside what the family always has.
PARTICULAR: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 9, "head_dim": 32},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
        "attention_bias": True,
    },
    "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": 0},
    "phi3": {"sliding_window": 9, "pad_token_id": 0},
    "olmo2": {},
    "olmo3": {"sliding_window": 9, "num_hidden_layers": 4},
    "gemma": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 32, "tie_word_embeddings": True, "sliding_window": 9},
    "gemma3_text": {
        "head_dim": 32,
        "tie_word_embeddings": True,
        "sliding_window": 9,
        "layer_types": ["full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 24,
    },
    "gpt2": {"n_inner": 96},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 9},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
}
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
Array = npt.NDArray[np.float32]
Cache = dict[str, Array]


def write_decoder(folder: Path, family: str = "llama", *, seed: int = 0, **settings: Any) -> Path:
    """A folder with two layers of 64 numbers, 4 heads of queries and 2 of keys."""
    folder.mkdir(parents=True)
    named = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT}
    size = write_words(folder, ["<unk>", "<s>", "</s>"], form="<s> $A", **named)
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": size,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            **({} if family in GPT else {"num_key_value_heads": 2}),
            "intermediate_size": 96,
            "max_position_embeddings": 96,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            **PARTICULAR.get(family, {}),
            **settings,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float()
        for name, parameter in model.named_parameters():
            vector = float(parameter.ndim == 1 and name.endswith("weight"))
            spread = 0.25 if parameter.ndim > 1 else 0.3
            if "gemma" in family and "embed_tokens" in name:
                spread = 0.05  # it multiplies them by 8, and they are the output layer
            if family == "gpt_neo" and name.endswith(("q_proj.weight", "k_proj.weight")):
                spread /= 2  # it does not scale scores
            torch.nn.init.normal_(parameter, vector, spread)
    model.save_pretrained(folder)
    return folder


def write_words(folder: Path, special: list[str], *, form: str, **settings: str) -> int:
    """A word-level tokenizer that makes ``form`` of a text; returns its number of tokens."""
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS_64])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(token, vocabulary[token]) for token in special if token in form]
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=around)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


class Graph:
    """A generating graph that is kept open; ``run`` carries the cache and whatever fills slots."""

    def __init__(
        self,
        session: ort.InferenceSession,
        linears: Sequence[Linear] = (),
        joined: Joined | None = None,
    ) -> None:
        self._session = session
        self._linears, self._joined = linears, joined or {}
        inputs = {value.name: value.shape for value in session.get_inputs()}
        self.caches = {n: s for n, s in inputs.items() if n.startswith("past_key_values.")}
        self.filled: dict[str, Array] = {}

    def empty(self, rows: int = 1) -> Cache:
        return {n: np.zeros((rows, s[1], 0, s[3]), np.float32) for n, s in self.caches.items()}

    def run(
        self, ids: list[list[int]], cache: Cache, mask: list[list[int]] | None = None
    ) -> tuple[Array, Cache]:
        """Logits (rows, 1, vocabulary) behind each row's last token, and the grown cache."""
        past = next(iter(cache.values())).shape[2]
        whole = np.ones((len(ids), past + len(ids[0])), np.int64) if mask is None else mask
        inputs = {"input_ids": np.array(ids), "attention_mask": np.array(whole), **cache}
        filled = joined_tensors(self.filled, self._linears, self._joined)
        logits, *present = self._session.run(None, inputs | filled)
        return logits, dict(zip(self.caches, present, strict=True))

    def every(self, ids: list[int]) -> Array:
        """Logits (tokens, vocabulary) behind each token of a text, which is read one by one."""
        cache, seen = self.empty(), []
        for token in ids:
            logits, cache = self.run([[token]], cache)
            seen.append(logits[0, 0])
        return np.stack(seen)

    def greedy(
        self, ids: list[int], count: int, begun: Cache | None = None
    ) -> tuple[list[int], list[Array]]:
        """``count`` tokens, and the logits that led to each; ``begun`` is what the cache holds at first."""
        logits, cache = self.run([ids], begun or self.empty())
        tokens, seen = [], []
        for _ in range(count):
            seen.append(logits[0, -1])
            tokens.append(int(logits[0, -1].argmax()))
            logits, cache = self.run([[tokens[-1]]], cache)
        return tokens, seen


def built_graph(
    source: DecoderSource,
    folder: Path,
    *,
    bits: int = 4,
    embedding_bits: int = 8,
    slots: bool = True,
) -> tuple[Graph, dict[str, Array]]:
    """A graph, and the float weights that it stands for."""
    shape = shape_of(source.config)
    stored = stored_of(shape, source, bits=bits, embedding_bits=embedding_bits)
    floats = float_weights(shape, stored)
    nodes = generating_graph(shape, stored, slots=slots)
    folder.mkdir(exist_ok=True)
    nodes.save(folder / "graph.onnx", most=2**30)
    session = open_graph(folder / "graph.onnx")
    return Graph(session, shape.linears(), nodes.joined), floats


def stored_of(
    shape: DecoderShape | Seq2SeqShape, source: DecoderSource, *, bits: int, embedding_bits: int
) -> Stores:
    """A source's tensors as a base of these widths stores them."""
    return stored_weights(
        shape,
        source.tensors,
        bits=bits,
        embedding_bits=embedding_bits,
        tell=lambda _step, _share: None,
    ).tensors


def float_weights(shape: DecoderShape | Seq2SeqShape, stored: Stores) -> dict[str, Array]:
    """What stored tensors stand for, by Hugging Face's names."""
    widths = {f"{path}.weight": size[1] for path, size in shape.matrices().items()}
    return {name: floats_of(value, widths.get(name, 0)) for name, value in stored.items()}


def oracle(folder: Path, floats: Mapping[str, Array]) -> PreTrainedModel:
    """transformers' model of the source with the numbers of a base."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = json.loads((folder / "config.json").read_text())
    turned = turned_weights(shape_of(config))
    tensors = {
        name: torch.from_numpy((value.T if name in turned else value).copy())
        for name, value in floats.items()
    }
    state = model.load_state_dict(tensors, strict=False)
    assert not state.unexpected_keys
    assert set(state.missing_keys) <= {"lm_head.weight"}
    if state.missing_keys:
        model.tie_weights()
    return model.requires_grad_(False)


def torch_greedy(
    model: PreTrainedModel, ids: list[int], count: int
) -> tuple[list[int], list[Array]]:
    """The same as :meth:`Graph.greedy`, each token from the whole text anew."""
    tokens, seen = list(ids), []
    for _ in range(count):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].numpy()
        seen.append(logits)
        tokens.append(int(logits.argmax()))
    return tokens[len(ids) :], seen


def torch_followed(model: Any, ids: list[int], tokens: list[int]) -> list[Array]:
    """The logits that lead to each of ``tokens`` behind ``ids``, in one run.

    Where each token is the likeliest, they are what :func:`torch_greedy` writes: a token sees none behind it.
    """
    text = torch.tensor([[*ids, *tokens[:-1]]])
    logits = model(input_ids=text, attention_mask=torch.ones_like(text)).logits[0]
    return list(logits[-len(tokens) :].detach().numpy())


def prefix_cache(table: Array, shape: DecoderShape) -> Cache:
    """What a cache holds at first of peft's table, (tokens, layers * 2 * kv_heads * head_size)."""
    parts = np.split(table, shape.layers * 2, axis=1)
    return {
        f"past_key_values.{number // 2}.{('key', 'value')[number % 2]}": np.stack(
            np.split(part, shape.kv_heads, axis=1)
        )[None]
        for number, part in enumerate(parts)
    }


def apart(expected: Any, answers: Any) -> float:
    """Norm of the difference over the norm of what was expected."""
    return float(np.linalg.norm(np.subtract(answers, expected)) / np.linalg.norm(expected))
