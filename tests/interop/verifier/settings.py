"""P-5.1: adapter_config.json, and the head's name in the folder."""

from __future__ import annotations

from typing import Any

from .documents import Documents, adapted, role_of, standing


def folder_head(documents: Documents) -> str:
    """The head's name in the folder."""
    manifest, method = documents.manifest, documents.plan["adapter"]["method"]
    ordinary = (manifest["family"], manifest["pooling"]) == ("bert", "pooler")
    if ordinary and method not in ("norm", "bottleneck"):
        return str(manifest["head"]["path"])
    return f"head_on_{manifest['pooling']}"


def config(documents: Documents) -> dict[str, Any]:
    """adapter_config.json."""
    manifest = documents.manifest
    writes = {"causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM"}.get(manifest["task"])
    both = {
        "task_type": writes or "SEQ_CLS",
        "base_model_name_or_path": manifest["source"],
        "inference_mode": True,
    }
    if not writes:
        both |= {
            "modules_to_save": [folder_head(documents)],
            "auto_mapping": {
                "base_model_class": "Classifier",
                "parent_library": "open_adapter",
                "pooling": manifest["pooling"],
                "how": "open_adapter.load(folder, base)",
            },
        }
    return both | of_method(documents)


def of_method(documents: Documents) -> dict[str, Any]:
    """The keys of it that a method has."""
    adapter, manifest = documents.plan["adapter"], documents.manifest
    if adapter["method"] == "prompt":
        return {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": adapter["tokens"],
            "token_dim": manifest["embedding_size"],
            "num_layers": manifest["layers"],
            "num_attention_heads": 1,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }
    if adapter["method"] == "prefix":
        return {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": adapter["tokens"],
            "token_dim": manifest["kv_heads"] * manifest["head_size"],
            "num_layers": manifest["layers"],
            "num_attention_heads": manifest["kv_heads"],
            "num_transformer_submodules": 1,
            "prefix_projection": False,
        }
    if adapter["method"] == "loha":
        return {
            "peft_type": "LOHA",
            "r": adapter["rank"],
            "alpha": adapter["alpha"],
            "target_modules": sorted(adapted(documents.plan, manifest)),
        }
    if adapter["method"] == "lokr":
        return {
            "peft_type": "LOKR",
            "r": adapter["rank"],
            "alpha": adapter["alpha"],
            "decompose_both": True,
            "decompose_factor": -1,
            "target_modules": sorted(adapted(documents.plan, manifest)),
        }
    if adapter["method"] == "ia3":
        linears = adapted(documents.plan, manifest)
        return {
            "peft_type": "IA3",
            "target_modules": sorted(linears),
            "feedforward_modules": sorted(p for p, (width, out) in linears.items() if out < width),
        }
    if adapter["method"] == "bottleneck":
        places = standing(documents.plan, manifest)
        return {
            "peft_type": "BOTTLENECK",
            "places": adapter["places"],
            "bottleneck_size": adapter["width"],
            "non_linearity": "relu",
            "scaling": adapter["scaling"],
            "target_modules": list(places),
            "output_modules": list(places.values()),
        }
    if adapter["method"] == "norm":
        norms = {name.rpartition(".")[0] for name in documents.shapes if role_of(name) == "scale"}
        return {"peft_type": "LN_TUNING", "target_modules": sorted(norms)}
    alone = adapter["method"] in ("head", "bias")
    stable = {"use_rslora": True} if adapter.get("rank_stabilised") else {}
    biased = {"lora_bias": True} if adapter["method"] == "bias" else {}
    targets = sorted(adapted(documents.plan, manifest)) if "targets" in adapter else None
    return (
        stable
        | biased
        | {
            "peft_type": "LORA",
            "r": 1 if alone else adapter["rank"],
            "lora_alpha": 1.0 if alone else adapter["alpha"],
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": targets or "dummy-target-modules",
        }
    )
