"""The model card of a published adapter: it follows from plan, base, round and privacy. (P-5.1)"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from protocol.manifest import Manifest
from protocol.plan import Plan


def model_card(
    plan: Plan,
    manifest: Manifest,
    round_number: int,
    secure: bool,
    privacy: Mapping[str, Any] | None,
) -> str:
    """The text of ``README.md``; ``privacy`` is the record's, None without any. (P-5.1)"""
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


def _spent(privacy: Mapping[str, Any] | None) -> str:
    if privacy is None:
        return "There is no differential privacy: it may reveal single rows of a client."
    return (
        f"Differential privacy of one client's whole update ({privacy['mechanism']} noise): epsilon "
        f"{privacy['epsilon']:.3f} at delta {privacy['delta']:g}."
    )
