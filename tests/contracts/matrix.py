"""Every method on a base of every task and width: tiny bases, plans, and the table that says what is legal.

    python -m tests.contracts.matrix > docs/methods.md

Cells are what ``protocol.legality`` says; `test_matrix.py` tries every one of them, and compares the page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from base_model.build import build_base
from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from base_model.media_build import builder_of
from base_model.seq2seq.build import build_seq2seq
from base_model.seq2seq.folder import seq2seq_source
from base_model.verify import read_manifest
from protocol.legality import check
from protocol.manifest import DOCUMENTS
from protocol.media import DRAWN, IMAGE, MEDIA, SOUND
from protocol.methods import METHODS, REFUSED
from protocol.plan import Plan, plan_from
from protocol.rules import RULES
from tests.denoiser_models import write_denoiser_source
from tests.image_models import write_images_source
from tests.methods import adapter_of, rule_of
from tests.page_models import write_pages_source
from tests.sound_models import write_sounds_source
from tests.waveform_models import SECONDS, write_waveform_source

TASKS: dict[str, dict[str, Any]] = {
    "classification": {"labels": ["a", "b", "c"], "max_length": 16},
    "regression": {"kind": "regression", "low": 0.0, "high": 1.0, "max_length": 16},
    **{task: {"kind": task, "labels": ["a", "b", "c"]} for task in MEDIA},
    DOCUMENTS: {"kind": DOCUMENTS, "labels": ["a", "b", "c"], "max_length": 16},
    "causal-lm": {"kind": "causal-lm", "form": "text", "max_length": 16},
    "seq2seq-lm": {"kind": "seq2seq-lm", "max_length": 16},
}
SAMPLES = f"{SOUND.task}, samples"
COLUMNS: dict[str, dict[str, Any]] = {  # of bases: sounds are heard in two ways
    name: TASKS[SOUND.task if name == SAMPLES else name]
    for task in TASKS
    for name in ((task, SAMPLES) if task == SOUND.task else (task,))
}
SORTS = ("classification", "regression")  # on one base
SOURCES = {
    IMAGE.task: write_images_source,
    SOUND.task: write_sounds_source,
    SAMPLES: partial(write_waveform_source, kind="wav2vec2-large"),
    DRAWN.task: write_denoiser_source,
}
BITS = (4, 8, 16, 32)
Reasons = Mapping[tuple[str, str], str]  # by method and task; empty where it is legal

HEAD = """# Every method on every kind of base

Written by `python -m tests.contracts.matrix > docs/methods.md`; `make test-bases` compares it with the registries and tries
each column at 4 bits and at one other width, `make test-slow` every cell (`tests/contracts/test_matrix.py`): one round of steps moves each tensor that the method trains, the release answers as torch and
peft answer, 1e-4 relative (1e-3 where a base that writes text has 8 bits: its products are of whole numbers), and every release is loaded
behind every other on one opened base, which answers as
before when the first comes back. Sums in secret, audits and devices are those of `tests/integration/test_every_method.py`,
`test_text_runs.py`, `test_seq2seq_runs.py`, `test_image_runs.py`, `test_sound_runs.py`, `test_document_runs.py` and `test_drawing_runs.py`.

"""


def build(task: str, bits: int, folder: Path, encoder_source: Path) -> Path:
    """A tiny random base for a task."""
    from tests.unit.base_model.decoder.models import write_decoder
    from tests.unit.base_model.seq2seq.models import write_model

    out = folder / f"{task}-{bits}"
    if task in SORTS:
        about = {"task": "sequence-classification", "scales": True}
        build_base(str(encoder_source), bits=bits, out=out, **about)
    elif task == DOCUMENTS:
        source = write_pages_source(folder / f"{task}-{bits}-source")
        build_base(str(source), task=task, bits=bits, out=out, scales=True)
    elif task in SOURCES:
        source, kind = SOURCES[task](folder / f"{task}-{bits}-source"), COLUMNS[task]["kind"]
        seconds = SECONDS if task == SAMPLES else 0
        scales = kind != DRAWN.task  # of which bases that draw have none
        builder_of(kind)(str(source), bits=bits, out=out, scales=scales, seconds=seconds)
    elif task == "causal-lm":
        source = write_decoder(folder / f"decoder-{bits}", "llama")
        build_decoder(decoder_source(str(source)), bits=bits, out=out)
    else:
        source = write_model(folder / f"seq2seq-{bits}")
        build_seq2seq(seq2seq_source(str(source)), bits=bits, out=out, context=24)
    return out


def plan_of(base: Path, task: str, method: str, **sections: Any) -> Plan:
    """On all linears where the method has targets."""
    document = {
        "name": "matrix",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": COLUMNS[task],
        "adapter": adapter_of(method, targets="all-linear"),
        "rule": {"name": rule_of(method)},
    }
    return plan_from(document | sections, source="the matrix")


def reason_of(base: Path, task: str, method: str) -> str:
    """Why a plan is illegal, or empty."""
    findings = check(plan_of(base, task, method), read_manifest(base))
    return next((finding.cause for finding in findings if finding.severity == "error"), "")


def document(reasons: Reasons, refused: str) -> str:
    """The page; ``refused`` is its last section."""
    widths, notes = " ".join(map(str, BITS)), list[str]()
    lines = [
        f"| method | {' | '.join(f'`{task}`' for task in COLUMNS)} |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for method in METHODS:
        cells = []
        for task in COLUMNS:
            if not (reason := reasons[method, task]):
                cells.append(widths)
                continue
            if reason not in notes:
                notes.append(reason)
            cells.append(f"no ({notes.index(reason) + 1})")
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    text = (
        HEAD
        + f"A cell has the widths of the base's linears, in bits. `hybrid` is tried with `lora` and `prompt`, its defaults; what it may be\non a base, and whether that is exact, hangs on its members. Of sounds there are two columns: on a base that hears features (Whisper's encoder), and\non one that hears samples (wav2vec 2.0).\n\n{_joined(lines)}"
    )
    text += "\n" + "".join(f"\n{number}. {note}" for number, note in enumerate(notes, 1))
    return f"{text}\n\n{_rules()}\n\n{_refused()}\n\n{refused}\n"


def _rules() -> str:
    """Methods under rules: whether the mean of updates is the mean of what they do."""
    lines = [
        f"| method | {' | '.join(f'`{rule}`' for rule in RULES)} |",
        "|---" * (len(RULES) + 1) + "|",
    ]
    for name, method in METHODS.items():
        cells = [
            "no" if not rule.takes(method) else "exact" if rule.exact(method) else "not exact"
            for rule in RULES.values()
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return f"## Methods and rules\n\nWhat is legal is so under secure aggregation, which sums.\n\n{_joined(lines)}"


def _refused() -> str:
    lines = ["| name | why, or what instead |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())]
    return f"## Refused by name\n\n{_joined(lines)}"


def _joined(lines: list[str]) -> str:
    return "\n".join(lines)


def main() -> None:
    """Print the page."""
    from tests.contracts.illegal import page, refusals
    from tests.tiny_model import write_tiny_source

    with TemporaryDirectory() as folder:
        source = write_tiny_source(Path(folder) / "source")
        bases = {task: build(task, 4, Path(folder), source) for task in COLUMNS if task != SORTS[1]}
        bases[SORTS[1]] = bases[SORTS[0]]
        reasons = {
            (method, task): reason_of(bases[task], task, method)
            for method in METHODS
            for task in COLUMNS
        }
        refused = page(refusals(reasons, bases.__getitem__))
    sys.stdout.write(document(reasons, refused))


if __name__ == "__main__":
    main()
