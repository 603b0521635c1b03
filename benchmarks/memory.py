"""Peak memory of LoRA training on int4 codes against fp32 weights, Llama-shaped, 162M parameters.

    python benchmarks/memory.py [--json]

Each variant is a fresh process: import everything, note the resident size, open the weights from a
file, train steps of 64 tokens, report the peak over the imports. Target: int4 at most half of fp32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
STEPS, TOKENS, RANK = 5, 64, 8


def resident_peak() -> int:
    """VmHWM in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc and runs on Linux only")


def write_weights(folder: Path) -> int:
    """Random weights, once as float32 and once as codes; returns the number of parameters."""
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from protocol.codes import quantise

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, folder / "fp32.safetensors")
    coded: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if "_proj" in name:
            codes, scales = quantise(value.numpy(), bits=4, block=32)
            coded[name.removesuffix(".weight") + ".qweight"] = torch.from_numpy(
                np.ascontiguousarray(codes.reshape(len(codes), -1))
            )
            coded[name.removesuffix(".weight") + ".scales"] = torch.from_numpy(scales)
        else:
            coded[name] = value
    save_file(coded, folder / "int4.safetensors")
    return sum(p.numel() for p in model.parameters())


def train(variant: str, folder: Path) -> dict[str, float]:
    """One variant in this process: peak over imports (bytes), file size, seconds per step."""
    import time

    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors import safe_open
    from transformers import LlamaConfig, LlamaForCausalLM

    from base_model.quant_linear import QuantLinear

    torch.set_num_threads(1)
    before = resident_peak()
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    path = folder / f"{variant}.safetensors"
    with safe_open(path, "pt") as file:
        if variant == "int4":
            for name, module in list(model.named_modules()):
                if name.endswith("_proj"):
                    parent = model.get_submodule(name.rpartition(".")[0])
                    setattr(
                        parent,
                        name.rpartition(".")[2],
                        QuantLinear.from_codes(
                            file.get_tensor(name + ".qweight"),
                            file.get_tensor(name + ".scales"),
                            bits=4,
                            block=32,
                            in_features=module.in_features,
                            bias=None,
                        ),
                    )
        rest = {
            k: file.get_tensor(k)
            for k in sorted(file.keys())
            if not k.endswith((".qweight", ".scales"))
        }
    model.load_state_dict(rest, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # buffers left on meta
    model = get_peft_model(model, LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"]))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(0, SHAPE["vocab_size"], (1, TOKENS))
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {"peak": resident_peak() - before, "file": path.stat().st_size, "step": min(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(train(arguments.variant, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        parameters = write_weights(Path(name))
        results = {}
        for variant in ("fp32", "int4"):
            done = subprocess.run(
                [sys.executable, __file__, "--variant", variant, "--folder", name],
                check=True,
                capture_output=True,
                text=True,
            )
            results[variant] = json.loads(done.stdout.splitlines()[-1])
    ratio = results["int4"]["peak"] / results["fp32"]["peak"]
    if arguments.json:
        print(json.dumps({"parameters": parameters, **results, "peak_ratio": ratio}))
        return
    print(f"Llama-shaped, {parameters / 1e6:.0f}M parameters, LoRA r {RANK}, {TOKENS} tokens")
    for variant, r in results.items():
        print(
            f"  {variant}: peak over imports {r['peak'] / 1e6:.0f} MB, file {r['file'] / 1e6:.0f} MB, "
            f"step {r['step'] * 1e3:.0f} ms"
        )
    print(f"  peak int4 / fp32 = {ratio:.2f} (target: at most 0.50)")


if __name__ == "__main__":
    main()
