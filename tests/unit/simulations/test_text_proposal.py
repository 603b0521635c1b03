"""What is proposed for rows and a base that writes: it names the right columns, fits the rows, and trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from base_model.seq2seq.build import build_seq2seq
from base_model.seq2seq.folder import seq2seq_source
from base_model.verify import read_manifest
from client.data import load_rows
from client.training import train
from client.worker import Worker
from fedge.plans import read_plan
from fedge.proposing import init
from protocol.errors import DataError
from protocol.legality import check
from protocol.tasks.classification import Classification
from simulations.data import experiment_rows
from simulations.experiment import load_experiment
from simulations.proposal import propose
from simulations.text_experiment import render_texts
from simulations.text_proposal import LONGEST, length_for, propose_texts, steps_for
from tests.unit.base_model.decoder.models import write_decoder
from tests.unit.base_model.seq2seq.models import write_model
from tests.unit.base_model.sources import WORDS_64

WORDS = WORDS_64[:30]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny: a llama that chats, the same without a template, and a T5."""
    folder = tmp_path_factory.mktemp("bases")
    out = {name: folder / name for name in ("chat", "plain", "t5")}
    for name in ("chat", "plain"):
        source = write_decoder(folder / f"{name}-source")
        if name == "plain":
            path = source / "tokenizer_config.json"
            settings = json.loads(path.read_text())
            del settings["chat_template"]
            path.write_text(json.dumps(settings))
        build_decoder(decoder_source(str(source)), bits=4, out=out[name], calibration=None)
    source = write_model(folder / "t5-source")
    build_seq2seq(seq2seq_source(str(source)), bits=4, out=out["t5"], calibration=None)
    return out


def text(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


def rows(make: Callable[[np.random.Generator], Row], count: int = 60) -> list[Row]:
    rng = np.random.default_rng(0)
    return [make(rng) | {"id": f"n{number}", "site": number % 4} for number in range(count)]


def chat(rng: np.random.Generator) -> Row:
    asked, answered = text(rng, 3), text(rng, 2)
    return {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]
    }


def alpaca(rng: np.random.Generator) -> Row:
    about = text(rng, 3) if rng.random() < 0.5 else ""
    return {"instruction": text(rng, 3), "input": about, "output": text(rng, 2)}


def written(path: Path, content: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


FORMS: dict[str, tuple[str, Callable[[np.random.Generator], Row], Row]] = {
    "messages": ("chat", chat, {"kind": "causal-lm", "form": "messages"}),
    "renamed messages": (
        "chat",
        lambda rng: {"conversation": chat(rng)["messages"]},
        {"kind": "causal-lm", "form": "messages", "messages": "conversation"},
    ),
    "alpaca": (
        "chat",
        alpaca,
        {
            "kind": "causal-lm",
            "form": "prompt",
            "prompt": "instruction",
            "context": "input",
            "completion": "output",
        },
    ),
    "prompt": (
        "plain",
        lambda rng: {"prompt": text(rng, 3), "completion": text(rng, 2)},
        {"kind": "causal-lm", "form": "prompt"},
    ),
    "text": (
        "plain",
        lambda rng: {"text": text(rng, 5), "topic": str(rng.choice(WORDS[:2]))},
        {"kind": "causal-lm", "form": "text"},
    ),
    "source": (
        "t5",
        lambda rng: {"document": text(rng, 5), "summary": text(rng, 2)},
        {"kind": "seq2seq-lm", "source": "document", "target": "summary"},
    ),
    "languages": (
        "t5",
        lambda rng: {"en": text(rng, 3), "de": text(rng, 3)},
        {"kind": "seq2seq-lm", "source": "en", "target": "de"},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_columns_form_and_owners_are_proposed_and_can_be_run(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    kind, make, task = FORMS[name]
    base, path = bases[kind], written(tmp_path / "rows.jsonl", rows(make))
    proposal = propose_texts(path, base)
    lengths = {key: proposal.task[key] for key in ("max_length", "unanswered")}
    assert proposal.task == task | lengths
    assert (proposal.column, proposal.clients, proposal.lost) == ("site", 4, 0)
    assert lengths["unanswered"] == "refuse"
    assert proposal.longest <= lengths["max_length"] < proposal.longest + 16
    out = tmp_path / "e.toml"
    out.write_text(render_texts(proposal, path, None, out, base=base), "utf-8")
    experiment = load_experiment(out)
    train, test = experiment_rows(experiment)
    assert (len(train), len(test), len(set(train.groups))) == (48, 12, 4)
    manifest = read_manifest(base)
    plan = experiment.plan_for(fingerprint=manifest.fingerprint, labels=[])
    odd = [finding for finding in check(plan, manifest) if finding.severity != "note"]
    assert {finding.field for finding in odd} == {"cohort.quorum"}  # four devices: none may be lost


@pytest.mark.parametrize("name", ["messages", "prompt", "text", "source"])
def test_a_plan_for_a_sites_rows_trains_on_them(
    bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    kind, make, _ = FORMS[name]
    base, path, out = bases[kind], tmp_path / "rows.jsonl", tmp_path / "plan.toml"
    written(path, rows(make, 20))
    init(out=out, base=base, data=path, as_json=True)
    plan = read_plan(out)
    assert not [f for f in check(plan, read_manifest(base)) if f.severity == "error"]
    site = Worker(plan, base)
    encoded = site.encode(load_rows(path, plan.task))
    assert len(encoded) == 20
    start = site.recipe.start()
    before = site.score(start, encoded)
    parts = site.recipe.trainable
    trained = train(
        site.engine, start, encoded, local=plan.local, parts=parts, seed=0, epochs=4
    ).tensors
    assert site.score(trained, encoded).loss_sum < before.loss_sum


def test_a_base_that_sorts_is_proposed_labels(tiny_base: Path, tmp_path: Path) -> None:
    content = [{"text": f"the {n}", "label": "ab"[n % 2]} for n in range(8)]
    out = tmp_path / "plan.toml"
    init(out=out, base=tiny_base, data=written(tmp_path / "rows.jsonl", content), as_json=True)
    assert read_plan(out).task == Classification(labels=["a", "b"])


def prompts(count: int, long: dict[int, Row]) -> list[Row]:
    return [{"prompt": WORDS[0], "completion": WORDS[1]} | long.get(n, {}) for n in range(count)]


def test_a_few_long_rows_are_cut_and_said(bases: dict[str, Path], tmp_path: Path) -> None:
    late = {7: {"prompt": " ".join(WORDS)}, 8: {"completion": " ".join(WORDS)}}
    path = written(tmp_path / "rows.jsonl", prompts(300, late))
    proposal = propose_texts(path, bases["plain"])
    assert proposal.task["max_length"] == 16
    assert (proposal.cut, proposal.lost, proposal.longest) == (2, 1, 33)
    assert proposal.task["unanswered"] == "skip"
    text = render_texts(proposal, path, None, tmp_path / "e.toml", base=bases["plain"])
    assert "max_length = 16  # 2 of 300 rows are cut, the longest has 33 tokens\n" in text
    said = 'unanswered = "skip"  # of 1 of 300 rows nothing to learn is within max_length\n'
    assert said in text
    plan = load_experiment(_kept(tmp_path / "e.toml", text)).plan_for(
        fingerprint=read_manifest(bases["plain"]).fingerprint, labels=[]
    )
    site = Worker(plan, bases["plain"])
    assert len(site.encode(load_rows(path, plan.task))) == 299


def test_rows_that_are_longer_than_the_base_reads_are_said_to_be_cut(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    path = written(tmp_path / "a.jsonl", [{"text": " ".join(WORDS * 4)}] * 9 + [{"text": "the"}])
    proposal = propose_texts(path, bases["plain"])
    assert (proposal.task["max_length"], proposal.longest, proposal.cut) == (96, 122, 9)


def _kept(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("where", ["train", "test"])
def test_rows_without_an_answer_are_left_out(
    bases: dict[str, Path], tmp_path: Path, where: str
) -> None:
    blank = {3: {"completion": " "}}
    train = written(tmp_path / "train.jsonl", prompts(20, blank if where == "train" else {}))
    test = written(tmp_path / "test.jsonl", prompts(9, blank if where == "test" else {}))
    proposal = propose_texts(train, bases["plain"], test)
    assert proposal.task["unanswered"] == "skip"
    assert (proposal.rows, proposal.measured) == (20 - (where == "train"), 28)


def test_what_was_not_measured_is_left_out_where_it_does_not_fit(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.text_proposal.ENOUGH", 10)
    proposal = propose_texts(written(tmp_path / "rows.jsonl", prompts(11, {})), bases["plain"])
    assert (proposal.measured, proposal.lost, proposal.task["unanswered"]) == (10, 0, "skip")


@pytest.mark.parametrize(
    ("tokens", "rows", "parameters", "local"),
    [
        (20, 1000, 10**8, {"batch_size": 16, "max_steps": 50, "learning_rate": 2e-3}),
        (20, 800, 10**8, {"batch_size": 16, "learning_rate": 2e-3}),
        (500, 100, 10**9, {"batch_size": 4, "learning_rate": 5e-4}),
        (5000, 40, 7 * 10**9, {"batch_size": 1, "learning_rate": 2e-4}),
        (20, 9, 10**8, {"batch_size": 4, "learning_rate": 2e-3}),
        (20, 1, 10**8, {"batch_size": 1, "learning_rate": 2e-3}),
    ],
)
def test_steps_fit_rows_and_model(tokens: float, rows: int, parameters: int, local: Row) -> None:
    assert steps_for(tokens, rows, parameters) == local


@pytest.mark.parametrize(
    ("lengths", "positions", "length"),
    [
        ([10] * 100, 96, 16),
        ([60] * 98 + [70, 74], 96, 80),  # hardly more: no row is cut
        ([20] * 98 + [70, 90], 96, 32),
        ([90] * 10, 64, 64),
        ([5000] * 10, 8192, LONGEST),
    ],
)
def test_most_rows_fit(lengths: list[int], positions: int, length: int) -> None:
    assert length_for(np.array(lengths), positions) == length


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        ("plain", [{"messages": []}] * 3, "the base has no chat template"),
        ("plain", [{"n": 1}] * 3, "no column holds chats, or texts in every row"),
        ("t5", [{"text": "a", "n": 1}] * 3, "no two columns look like texts and what they become"),
        ("chat", [{"messages": "the"}, {"messages": [{}]}], "no column holds chats"),
        ("chat", [{"messages": [{"role": "user"}]}], "line 1: column `messages`"),
    ],
)
def test_rows_that_the_base_cannot_learn_from(
    bases: dict[str, Path], tmp_path: Path, kind: str, content: list[Row], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        propose_texts(written(tmp_path / "a.jsonl", content), bases[kind])


def test_an_odd_file_is_named_with_what_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", rows(chat))
    with pytest.raises(DataError, match="name a base that writes: --base BASE"):
        propose(path)
