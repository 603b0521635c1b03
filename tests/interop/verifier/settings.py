"""P-5.1: adapter_config.json, and the head's name in the folder."""

from __future__ import annotations

from typing import Any

from .documents import Documents, adapted, role_of, standing


def folder_head(documents: Documents) -> str:
    """The head's name in the folder."""
    manifest, method = documents.manifest, documents.plan["adapter"]["method"]
    pooled = (manifest["family"], manifest["pooling"])
    ordinary = pooled in (("bert", "pooler"), ("layoutlm", "pooler"))
    ordinary = ordinary or manifest["pooling"] == "projected"
    ordinary = ordinary or manifest["task"] == "image-classification"
    if ordinary and method not in ("norm", "bottleneck", "dora", "hybrid"):
        return str(manifest["head"]["path"])
    return f"head_on_{manifest['pooling']}"


def config(documents: Documents) -> dict[str, Any]:
    """adapter_config.json."""
    manifest = documents.manifest
    writes = {"causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM"}.get(manifest["task"])
    draws = manifest["task"] == "image-generation"
    files = {"pixels", "log_mel", "waveform"} & manifest.keys()
    other = not draws and (not files or folder_head(documents) != manifest["head"]["path"])
    both = {
        "task_type": writes or ("SEQ_CLS" if other else None),
        "base_model_name_or_path": manifest["source"],
        "inference_mode": True,
    }
    if not writes and not draws:
        both |= {
            "modules_to_save": [folder_head(documents)],
            "auto_mapping": {
                "base_model_class": "Classifier",
                "parent_library": "open_adapter",
                "pooling": manifest["pooling"],
                "how": "open_adapter.load(folder, base)",
            },
        }
    if "waveform" in manifest:
        both["auto_mapping"]["seconds"] = manifest["waveform"]["seconds"]
    return both | of_method(documents)


def of_method(documents: Documents) -> dict[str, Any]:
    """The keys of it that a method has."""
    if documents.plan["adapter"]["method"] == "hybrid":
        members = documents.of_members().values()
        return {"peft_type": "HYBRID", "members": [of_method(member) for member in members]}
    return OF_METHOD.get(documents.plan["adapter"]["method"], low_rank)(documents)


def targets(documents: Documents) -> list[str]:
    return sorted(adapted(documents.plan, documents.manifest))


def prompt(documents: Documents) -> dict[str, Any]:
    manifest = documents.manifest
    return {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": documents.plan["adapter"]["tokens"],
        "token_dim": manifest["embedding_size"],
        "num_layers": manifest["layers"],
        "num_attention_heads": 1,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }


def prefix(documents: Documents) -> dict[str, Any]:
    manifest = documents.manifest
    return {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": documents.plan["adapter"]["tokens"],
        "token_dim": manifest["kv_heads"] * manifest["head_size"],
        "num_layers": manifest["layers"],
        "num_attention_heads": manifest["kv_heads"],
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }


def loha(documents: Documents) -> dict[str, Any]:
    adapter = documents.plan["adapter"]
    return {
        "peft_type": "LOHA",
        "r": adapter["rank"],
        "alpha": adapter["alpha"],
        "target_modules": targets(documents),
    }


def lokr(documents: Documents) -> dict[str, Any]:
    return loha(documents) | {
        "peft_type": "LOKR",
        "decompose_both": True,
        "decompose_factor": -1,
    }


def ia3(documents: Documents) -> dict[str, Any]:
    linears = adapted(documents.plan, documents.manifest)
    return {
        "peft_type": "IA3",
        "target_modules": sorted(linears),
        "feedforward_modules": sorted(p for p, (width, out) in linears.items() if out < width),
    }


def bottleneck(documents: Documents) -> dict[str, Any]:
    adapter = documents.plan["adapter"]
    places = standing(documents.plan, documents.manifest)
    return {
        "peft_type": "BOTTLENECK",
        "places": adapter["places"],
        "bottleneck_size": adapter["width"],
        "non_linearity": "relu",
        "scaling": adapter["scaling"],
        "target_modules": list(places),
        "output_modules": list(places.values()),
    }


def norm(documents: Documents) -> dict[str, Any]:
    norms = {name.rpartition(".")[0] for name in documents.shapes if role_of(name) == "scale"}
    return {"peft_type": "LN_TUNING", "target_modules": sorted(norms)}


def low_rank(documents: Documents) -> dict[str, Any]:
    """Of all that are published as LoRA, the head alone and biases among them."""
    adapter = documents.plan["adapter"]
    r = adapter.get("rank", 1) * adapter.get("heads", 1)
    keys = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": adapter.get("alpha", float(r)),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets(documents) if "targets" in adapter else "dummy-target-modules",
    }
    if adapter.get("rank_stabilised"):
        keys["use_rslora"] = True
    if adapter["method"] == "bias":
        keys["lora_bias"] = True
    if adapter["method"] == "dora":
        keys["use_dora"] = True
    return keys


OF_METHOD = {
    "prompt": prompt,
    "prefix": prefix,
    "loha": loha,
    "lokr": lokr,
    "ia3": ia3,
    "bottleneck": bottleneck,
    "norm": norm,
}
