"""A released adapter of a base that writes text, for other runtimes: llama.cpp, onnxruntime-genai."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from base_model.files import folder_that_appears
from base_model.gguf.lora import Factors, write_gguf_lora
from base_model.peft_folder import published_of, read_note, read_peft, verify_files
from base_model.verify import read_manifest
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.decoder_manifest import CHAT_TEMPLATE, IDS, LOGITS, MASK, DecoderManifest
from protocol.errors import ArtefactError
from protocol.forms import PREFIX, SOFT_PROMPT
from protocol.manifest import TOKENIZER, does
from protocol.peft_format import EDGE_FILE
from storage.regular import read_regular_text

A, B = ".lora_A", ".lora_B"
GENAI = "genai_config.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"
PAST = {"key": "past_key_values.%d.key", "value": "past_key_values.%d.value"}
PRESENT = {"key": "present.%d.key", "value": "present.%d.value"}


def export_gguf(adapter: Path, base: Path, out: Path) -> None:
    """Write the low-rank factors of a released adapter as a file for llama.cpp's ``--lora``.

    It runs beside the GGUF file that the base was built from. Raises ArtefactError for an adapter of another
    base, or one that is no low-rank factors; OSError.
    """
    manifest = _base_of(adapter, base)
    published = published_of(adapter)
    tensors = read_peft(adapter)
    paths = sorted(
        {name.removesuffix(end) for name in tensors for end in (A, B) if name.endswith(end)}
    )
    if set(tensors) != {path + end for path in paths for end in (A, B)}:
        odd = min(set(tensors) - {path + end for path in paths for end in (A, B)})
        raise ArtefactError(
            f"{adapter}: {odd} is no low-rank factor of a linear, and llama.cpp adapts nothing else",
            "release an adapter of method `lora` or `lora-sb`",
        )
    factors = {
        path: Factors(
            down=np.ascontiguousarray(tensors[path + A], np.float32),
            up=np.ascontiguousarray(tensors[path + B], np.float32),
        )
        for path in paths
    }
    rank = len(next(iter(factors.values())).down)
    write_gguf_lora(
        out,
        factors,
        architecture=manifest.family,
        alpha=published.constants["scaling"] * rank,
        heads=manifest.heads,
        kv_heads=manifest.kv_heads,
    )


def export_genai(adapter: Path, base: Path, out: Path) -> None:
    """Write a folder that onnxruntime-genai opens: the base's graph and the adapter.

    Raises ArtefactError for an adapter of another base, that was not released, or has a prompt or a prefix;
    OSError.
    """
    manifest = _base_of(adapter, base)
    if not (adapter / EDGE_FILE).is_file():
        raise ArtefactError(f"{adapter} was not released", "release it first: `fedge release RUN`")
    if odd := {SOFT_PROMPT, PREFIX} & read_peft(adapter).keys():
        raise ArtefactError(
            f"{adapter} has a {min(odd).replace('_', ' ')}, which onnxruntime-genai leaves out",
            "release an adapter of linears, such as LoRA",
        )
    with folder_that_appears(out) as new:
        for name in (*manifest.graph_files(), TOKENIZER, CHAT_TEMPLATE):
            if (base / name).is_file():
                shutil.copyfile(base / name, new / name)
        _write_inputs(adapter / EDGE_FILE, manifest, new / EDGE_FILE)
        settings = _tokenizer_settings(base, manifest)
        (new / TOKENIZER_SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        (new / GENAI).write_text(json.dumps(_genai_config(manifest), indent=1) + "\n", "utf-8")


def _write_inputs(adapter: Path, manifest: DecoderManifest, out: Path) -> None:
    """The adapter by the inputs of the graph, which onnxruntime-genai fills as they are."""
    if not manifest.joined:
        shutil.copyfile(adapter, out)
        return
    form = ort.AdapterFormat.read_adapter(str(adapter))  # lives as long as its values are read
    tensors = {name: np.array(value.numpy()) for name, value in form.get_parameters().items()}
    write_edge_adapter(manifest.inputs_of(tensors), out)


def _base_of(adapter: Path, base: Path) -> DecoderManifest:
    manifest, note = read_manifest(base), read_note(adapter)
    if not isinstance(manifest, DecoderManifest):
        raise ArtefactError(
            f"{base} is of the bases that {does(manifest)}, and one that was built from a decoder is needed",
            "name one that was built with --task causal-lm",
        )
    if manifest.fingerprint != note.base_fingerprint:
        raise ArtefactError(
            f"{adapter} belongs to base {note.base_fingerprint[:12]}…, {base} is "
            f"{manifest.fingerprint[:12]}…",
            "name the base the adapter was trained on",
        )
    verify_files(adapter, note)
    return manifest


def _tokenizer_settings(base: Path, manifest: DecoderManifest) -> dict[str, Any]:
    """What onnxruntime-genai asks beside ``tokenizer.json``."""
    tokens = json.loads((base / TOKENIZER).read_text("utf-8"))
    by_id = {token["id"]: token["content"] for token in tokens.get("added_tokens", [])}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if manifest.ends and manifest.ends[0] in by_id:
        settings["eos_token"] = by_id[manifest.ends[0]]
    if manifest.begin is not None and manifest.begin in by_id:
        settings["bos_token"] = by_id[manifest.begin]
    if (base / CHAT_TEMPLATE).is_file():
        settings["chat_template"] = read_regular_text(base / CHAT_TEMPLATE)
    return settings


def _genai_config(manifest: DecoderManifest) -> dict[str, Any]:
    end = manifest.ends[0] if manifest.ends else 0
    return {
        "model": {
            "type": "llama",  # of the contract: whatever has its inputs and outputs
            "bos_token_id": end if manifest.begin is None else manifest.begin,
            "eos_token_id": list(manifest.ends),
            "pad_token_id": end,
            "context_length": manifest.max_positions,
            "vocab_size": manifest.vocab_size,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": manifest.graph.file,
                "head_size": manifest.head_size,
                "hidden_size": manifest.hidden_size,
                "num_attention_heads": manifest.heads,
                "num_hidden_layers": manifest.layers,
                "num_key_value_heads": manifest.kv_heads,
                "inputs": {
                    "input_ids": IDS,
                    "attention_mask": MASK,
                    "past_key_names": PAST["key"],
                    "past_value_names": PAST["value"],
                },
                "outputs": {
                    "logits": LOGITS,
                    "present_key_names": PRESENT["key"],
                    "present_value_names": PRESENT["value"],
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": manifest.max_positions,
            "past_present_share_buffer": False,
        },
    }
