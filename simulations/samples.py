"""What a device writes before and after: answers of the base and of the released adapter to test prompts.

Answers are compared with the rows' own by sacrebleu: BLEU (Papineni et al. 2002), chrF (Popović 2015); and
the share is counted that is the same, but for blanks at its ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from client.data import Rows
from protocol.errors import MachineError
from protocol.peft_format import EDGE_FILE
from simulations.files import read_json, write_json
from simulations.prepare import Prepared
from simulations.progress import Progress
from simulations.records import adapter_folder
from simulations.writers import Writer, writer_of

SAMPLES = "samples.json"
BEFORE, ADAPTER = "before", "federated"
LONGEST = 1024  # tokens of a prompt
FIGURES = ("exact_match", "chrf", "bleu")
Json = dict[str, Any]


def write_samples(prepared: Prepared, rows: Rows, progress: Progress) -> Json:
    """The likeliest answers to test prompts, unless they are on file, and how near they are.

    Each of ``rows`` has ``prompt``, ``reference``, ``before``, and ``federated`` where the last round was
    released; ``scores`` has the figures of both, in per cent, where rows have answers of their own.
    """
    known: Json | None = read_json(prepared.out / SAMPLES)
    if known is not None:
        return known
    settings = prepared.experiment.samples
    edge = adapter_folder(prepared.out, prepared.plan.rounds) / EDGE_FILE
    writer = writer_of(prepared.base, prepared.plan.task)
    names = [BEFORE, *([ADAPTER] if edge.is_file() else [])]
    if edge.is_file():
        writer.load(ADAPTER, edge)
    samples: list[Json] = []
    chosen = islice(_prompts(writer, rows, settings.tokens), settings.rows)
    for number, (shown, tokens, reference) in enumerate(chosen):
        progress.update("samples", number, settings.rows)
        answers = {
            name: writer.write(tokens, None if name == BEFORE else name, settings.tokens)
            for name in names
        }
        samples.append({"prompt": shown, "reference": reference} | answers)
    written = {"rows": samples, "scores": {name: scored(samples, name) for name in names}}
    write_json(prepared.out / SAMPLES, written)
    return written


def scored(samples: Sequence[Json], name: str) -> dict[str, float]:
    """The figures of the answers ``name``; none where no row has an answer of its own."""
    pairs = [(each[name], each["reference"]) for each in samples if each["reference"].strip()]
    if not pairs:
        return {}
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ModuleNotFoundError:
        raise MachineError(
            "answers are compared by the package `sacrebleu`, which is not installed",
            "pip install -c constraints.txt '.[simulations]', or set samples.rows = 0",
        ) from None
    answers, references = (
        [str(text).strip() for text in column] for column in zip(*pairs, strict=True)
    )
    same = sum(a == b for a, b in zip(answers, references, strict=True))
    return {
        "exact_match": 100 * same / len(pairs),
        "chrf": float(CHRF().corpus_score(answers, [references]).score),
        "bleu": float(BLEU(effective_order=True).corpus_score(answers, [references]).score),
    }


def _prompts(writer: Writer, rows: Rows, most: int) -> Iterator[tuple[str, list[int], str]]:
    """(what is shown, tokens, reference) of the rows that are short enough to be read."""
    for row, reference in zip(rows.texts, rows.targets, strict=True):
        shown, tokens = writer.prompt(row)
        if 0 < len(tokens) <= min(LONGEST, writer.room - most):
            yield shown, tokens, reference


def scores_of(written: Json | None) -> dict[str, float | None]:
    """By figure and whose it is, for a summary."""
    scores: Json = (written or {}).get("scores", {})
    return {
        f"{figure}_{name}": scores.get(name, {}).get(figure)
        for figure in FIGURES
        for name in (BEFORE, ADAPTER)
    }
