"""The published adapter as a PEFT folder, written with numpy alone. (P-5.1)"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from protocol.layout import Tensors
from protocol.manifest import Manifest
from protocol.peft_format import (
    CONFIG_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    ReleaseNote,
    peft_config,
    to_peft,
)
from protocol.plan import Plan
from protocol.tensor_file import encode_tensors

CARD = "README.md"


def write_peft_folder(
    folder: Path,
    tensors: Tensors,
    *,
    plan: Plan,
    manifest: Manifest,
    rank: int,
    round_number: int,
    adapter_digest: str,
    exchange: str,
    secure: bool,
    metrics: dict[str, float],
    privacy: dict[str, Any] | None = None,
) -> None:
    """Write config, weights, model card and ``release.json`` into ``folder``, a new folder.

    ``tensors`` are plain LoRA (:func:`protocol.adapter.as_plain_lora`) or a soft prompt, with the
    head; ``adapter_digest`` is theirs.
    """
    folder.mkdir()
    config = peft_config(plan, manifest, rank=rank, base_name=manifest.source)
    contents = {
        CONFIG_FILE: (json.dumps(config, indent=1, sort_keys=True) + "\n").encode(),
        WEIGHTS_FILE: encode_tensors(to_peft(tensors), {"format": "pt"}),
        CARD: _card(plan, manifest, round_number, secure, privacy).encode(),
    }
    note = ReleaseNote(
        plan_name=plan.name,
        plan_digest=plan.digest,
        base_fingerprint=manifest.fingerprint,
        round=round_number,
        adapter_digest=adapter_digest,
        labels=plan.task.labels,
        max_length=plan.task.max_length,
        exchange=exchange,
        files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        metrics=metrics,
    )
    contents[RELEASE_FILE] = (note.model_dump_json(indent=1) + "\n").encode()
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def _card(
    plan: Plan,
    manifest: Manifest,
    round_number: int,
    secure: bool,
    privacy: dict[str, Any] | None,
) -> str:
    seen = (
        "The coordinator saw sums of updates only."
        if secure
        else "INSECURE exchange: the coordinator saw every client's update."
    )
    return f"""---
library_name: peft
base_model: {json.dumps(manifest.source)}
---
# {plan.name}, round {round_number}

An adapter trained by federated rounds with fedge (rule `{plan.rule.name}`, {len(plan.task.labels)} labels).
It belongs to the base with fingerprint `{manifest.fingerprint}` and computes nothing sensible on another.

```python
from pathlib import Path
from peft import PeftModel
from base_model.store import open_base

base = open_base(Path("BASE"), labels={len(plan.task.labels)})
model = PeftModel.from_pretrained(base.model, "THIS FOLDER")
```

{seen} {_spent(privacy)}
"""


def _spent(privacy: dict[str, Any] | None) -> str:
    if privacy is None:
        return "There is no differential privacy: it may reveal single rows of a client."
    return (
        f"Differential privacy of one client's whole update ({privacy['mechanism']} noise): epsilon "
        f"{privacy['epsilon']:.3f} at delta {privacy['delta']:g}."
    )
