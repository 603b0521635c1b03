"""The published adapter as a PEFT folder, written with numpy alone. (P-5.1)"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from protocol.layout import Tensors
from protocol.model_card import model_card
from protocol.openers import opener_of
from protocol.peft_format import (
    CARD_FILE,
    CONFIG_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    ReleaseNote,
    folder_head,
    has_opener,
    peft_config,
    render_config,
    render_release,
    to_peft,
)
from protocol.peft_opener import OPENER_FILE
from protocol.recipe import Recipe
from protocol.tensor_file import encode_tensors


def write_peft_folder(
    folder: Path,
    tensors: Tensors,
    *,
    recipe: Recipe,
    round_number: int,
    adapter_digest: str,
    exchange: str,
    secure: bool,
    metrics: dict[str, float],
    privacy: dict[str, Any] | None = None,
) -> None:
    """Write config, weights, model card, opener and ``release.json`` into ``folder``, a new folder.

    ``tensors`` are the adapter's; ``adapter_digest`` is that of what is published of them.
    """
    folder.mkdir()
    plan, manifest = recipe.plan, recipe.manifest
    plain, head = recipe.published(tensors), folder_head(manifest, recipe.method)
    config = peft_config(recipe, base_name=manifest.source)
    contents = {
        CONFIG_FILE: render_config(config),
        WEIGHTS_FILE: encode_tensors(
            to_peft(plain, method=recipe.method, head=head), {"format": "pt"}
        ),
        CARD_FILE: model_card(plan, manifest, round_number, secure, privacy).encode(),
    }
    if has_opener(manifest, recipe.method):
        contents[OPENER_FILE] = opener_of(manifest).encode()
    note = ReleaseNote(
        plan_name=plan.name,
        plan_digest=plan.digest,
        base_fingerprint=manifest.fingerprint,
        program=plan.base.program,
        round=round_number,
        adapter_digest=adapter_digest,
        exchange=exchange,
        files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        metrics=metrics,
        nested=recipe.method.nested,
        **plan.task.note(),
    )
    contents[RELEASE_FILE] = render_release(note)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
