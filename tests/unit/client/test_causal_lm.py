"""Sites that learn text: which tokens are read and which count, and training by these alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from base_model.decoder.torch_model import torch_decoder
from base_model.programs.folder import keep_program, open_program
from base_model.verify import open_tokenizer, read_manifest
from client.batches import collate
from client.data import Rows, load_rows
from client.engine.choice import forget
from client.tasks.writing import OF_THE_BASE
from client.training import train
from client.worker import Worker
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.chat import chat_prompt
from protocol.chat.messages import Chat, chat_from
from protocol.errors import ArtefactError, DataError, PlanError
from protocol.legality import check
from protocol.plan import Plan, plan_from
from tests.unit.base_model.decoder.models import write_decoder
from tests.unit.base_model.sources import WORDS_64

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + ' ' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
END = 2
WORDS = WORDS_64[:8]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny llama that chats, and the same without a template."""
    folder = tmp_path_factory.mktemp("decoders")
    bases = {}
    for name, template in (("chat", TEMPLATE), ("plain", None)):
        source = write_decoder(folder / name)
        settings = json.loads((source / "tokenizer_config.json").read_text())
        settings = {key: value for key, value in settings.items() if key != "chat_template"}
        settings |= {"chat_template": template} if template else {}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = json.loads((source / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["assistant"] = vocabulary.pop(WORDS_64[-1])  # a role that the template writes
        vocabulary["user"] = vocabulary.pop(WORDS_64[-2])
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        bases[name] = folder / f"{name}-base"
        build_decoder(decoder_source(str(source)), bits=4, out=bases[name], calibration=None)
    return bases


def plan_for(base: Path, **task: Any) -> Plan:
    document = {
        "name": "t",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": {"kind": "causal-lm", "max_length": 32} | task,
        "adapter": {"rank": 2, "targets": ["q_proj", "down_proj"]},
        "rule": {"name": "mean"},
        "local": {"batch_size": 3, "optimizer": "sgd", "learning_rate": 0.5, "clip_norm": 1e9},
    }
    return plan_from(document, source="test")


@pytest.fixture(scope="module")
def worker(bases: dict[str, Path]) -> Callable[..., Worker]:
    def make(base: str = "chat", **task: Any) -> Worker:
        return Worker(plan_for(bases[base], **task), bases[base])

    return make


def chat(*contents: str) -> Chat:
    roles = ("user", "assistant")
    return chat_from([{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)])


def rows_of(*texts: Any) -> Rows:
    return Rows(texts=list(texts), targets=[""] * len(texts))


def test_what_counts_of_a_chat_is_what_a_device_would_write(
    worker: Callable[..., Worker], bases: dict[str, Path]
) -> None:
    first, second = " ".join(WORDS[:3]), " ".join(WORDS[3:6])
    rows = worker().encode(rows_of(chat(first, second), chat(first, second, second, first)))
    device = DecoderBase.open(bases["chat"], threads=1)
    prompt = chat_prompt(device, chat_from([{"role": "user", "content": first}]))
    answer = [*device.encode(second, special=False), END]
    one = rows.ids[: rows.offsets[1]].tolist()
    assert one == prompt + answer
    expected = [-1] * (len(prompt) - 1) + answer + [-1]
    assert rows.targets[: rows.offsets[1]].tolist() == expected
    assert rows.counted.tolist() == [4, 8]
    longer = rows.ids[rows.offsets[1] :].tolist()
    again = chat_prompt(device, chat(first, second, second))
    assert longer[: len(again)] == again  # also what the answers before look like


def test_the_whole_is_transformers_own_reading(
    worker: Callable[..., Worker], bases: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bases["chat"])
    talk = chat(WORDS[0], WORDS[1], WORDS[2], WORDS[3])
    rows = worker().encode(rows_of(talk))
    whole = tokenizer.apply_chat_template([dict(m) for m in talk.messages], tokenize=False)
    assert rows.ids.tolist() == tokenizer(whole.rstrip(), add_special_tokens=False).input_ids


def test_a_base_without_a_template_reads_prompt_and_completion(
    worker: Callable[..., Worker], bases: dict[str, Path]
) -> None:
    site = worker("plain", form="prompt")
    rows = site.encode(rows_of(chat(f"{WORDS[0]} ", WORDS[1])))
    device = DecoderBase.open(bases["plain"], threads=1)
    assert rows.ids.tolist() == [
        *device.encode(WORDS[0]),
        *device.encode(WORDS[1], special=False),
        END,
    ]
    assert rows.targets.tolist() == [-1, *device.encode(WORDS[1], special=False), END, -1]


def test_of_a_plain_text_all_counts_and_its_end(worker: Callable[..., Worker]) -> None:
    rows = worker(form="text").encode(rows_of(" ".join(WORDS[:4])))
    assert rows.targets.tolist() == [*rows.ids[1:].tolist(), -1]
    assert rows.ids[-1] == END


def test_long_rows_are_cut_and_refused_where_nothing_would_count(
    worker: Callable[..., Worker],
) -> None:
    short, long = chat(WORDS[0], " ".join(WORDS * 6)), chat(" ".join(WORDS * 6), WORDS[0])
    cut = worker().encode(rows_of(short))
    assert (len(cut.ids), cut.counted.tolist()) == (32, [32 - 6])
    with pytest.raises(
        DataError,
        match=r"^row 2: its answer begins behind 53 tokens, the plan takes 32",
    ):
        worker().encode(rows_of(short, long))
    skipping = worker(unanswered="skip")
    assert len(skipping.encode(rows_of(short, long, short))) == 2
    with pytest.raises(DataError, match="no row's answer begins within 32 tokens"):
        skipping.encode(rows_of(long))


def test_a_row_that_cannot_be_learnt_is_named_by_file_and_line(
    worker: Callable[..., Worker], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    asked = [{"prompt": WORDS[0], "completion": WORDS[1]}] * 3
    asked[1] = {"prompt": WORDS[0], "completion": ""}  # left out while it is read
    asked[2] = {"prompt": " ".join(WORDS * 6), "completion": WORDS[0]}
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in asked))
    skipping = worker(form="prompt", unanswered="skip").plan.task
    rows = load_rows(path, skipping)
    assert len(rows) == 2
    with pytest.raises(DataError) as refused:
        worker(form="prompt").encode(rows)
    assert refused.value.cause == (
        f"{path}: line 4: its answer begins behind 53 tokens, the plan takes 32"
    )
    assert refused.value.public == "a row whose answer begins behind task.max_length"


def test_a_chat_that_the_template_refuses_is_named_by_file_and_line(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    path = tmp_path / "rows.jsonl"
    talks = [[dict(m) for m in talk.messages] for talk in (chat(*WORDS[:2]), chat(*WORDS[:3]))]
    del talks[1][0]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    site = worker()
    rows = load_rows(path, site.plan.task)
    base = vars(site._base)
    monkeypatch.setattr(site, "_base", type(site._base)(**base | {"template": strict + TEMPLATE}))
    with pytest.raises(DataError) as refused:
        site.encode(rows)
    assert refused.value.cause == (
        f"{path}: line 2: the base's chat template refuses these messages: user first"
    )
    assert refused.value.public == "the local data does not fit the plan"
    forgets = (
        "{% for m in messages %}{{ m.role if loop.last else '' }} {{ m.content }}\n{% endfor %}"
    )
    monkeypatch.setattr(site, "_base", type(site._base)(**base | {"template": forgets}))
    path.write_text("\n" + json.dumps({"messages": [dict(m) for m in chat(*WORDS[:4]).messages]}))
    with pytest.raises(DataError) as odd:
        site.encode(load_rows(path, site.plan.task))
    assert odd.value.cause.startswith(
        f"{path}: line 2: the base's chat template writes earlier messages"
    )
    assert odd.value.public == OF_THE_BASE


@pytest.mark.parametrize(
    "template",
    [
        "{{ {}[messages[0].content].x }}",
        "{{ [].index(messages[0].content) }}",
        "{{ [1] | map(messages[0].content) | list }}",
    ],
)
def test_what_a_template_says_of_a_row_when_it_fails_leaves_no_trace(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """Jinja's own words quote what it was given; nor is a coordinator told which row it is."""
    site, secret = worker(), "born in 1970"
    monkeypatch.setattr(
        site, "_base", site._base.__class__(**vars(site._base) | {"template": template})
    )
    with pytest.raises(DataError) as failed:
        site.encode(rows_of(chat(secret, WORDS[1])))
    assert failed.value.cause.startswith("row 1: the base's chat template does not work: ")
    assert secret not in f"{failed.value.cause} {failed.value.remedy} {failed.value.public}"
    assert failed.value.public == OF_THE_BASE


def test_a_template_that_rewrites_earlier_answers_is_refused(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgets = (
        "{% for m in messages %}{{ m.role if loop.last else '' }} {{ m.content }}\n{% endfor %}"
    )
    site = worker()
    monkeypatch.setattr(
        site, "_base", site._base.__class__(**vars(site._base) | {"template": forgets})
    )
    with pytest.raises(DataError, match="writes earlier messages otherwise") as refused:
        site.encode(rows_of(chat(*WORDS[:4])))
    assert refused.value.public == OF_THE_BASE


@pytest.mark.parametrize("change", ["|upper", ".split(' ')[-1]"])
def test_a_template_that_says_something_else_is_refused(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    odd = TEMPLATE.replace("m.content", f"(m.content{change})")
    site = worker()
    monkeypatch.setattr(site, "_base", site._base.__class__(**vars(site._base) | {"template": odd}))
    with pytest.raises(DataError, match="writes an answer otherwise") as refused:
        site.encode(rows_of(chat(WORDS[0], f"{WORDS[1]} {WORDS[2]}")))
    assert refused.value.public == OF_THE_BASE


def test_a_step_follows_the_mean_over_the_tokens_that_count(
    worker: Callable[..., Worker], bases: dict[str, Path]
) -> None:
    """One step of SGD is minus the rate times the gradient: transformers', by autograd, in 64 bits."""
    site = worker()
    rows = site.encode(
        rows_of(chat(WORDS[0], WORDS[1]), chat(WORDS[2], " ".join(WORDS)), chat(*WORDS[:4]))
    )
    start = {name: value.copy() for name, value in site.recipe.start().items()}
    rng = np.random.default_rng(0)
    for name, value in start.items():
        if name.endswith("lora_B"):
            start[name] = rng.normal(0, 0.1, value.shape).astype(np.float32)
    parts = site.recipe.parts(1)
    after = train(site.engine, start, rows, local=site.plan.local, parts=parts, seed=0, epochs=1)
    assert (after.steps, after.examples) == (1, 3)
    model = torch_decoder(bases["chat"]).double()
    leaves = adapt(model, start, scaling=site.recipe.constants["scaling"])
    batch = collate(rows, np.arange(3))
    labels = np.concatenate([np.full((3, 1), -100), batch.targets[:, :-1]], 1)
    labels[labels < 0] = -100
    output = model(
        input_ids=torch.from_numpy(batch.ids),
        attention_mask=torch.from_numpy(batch.mask),
        labels=torch.from_numpy(labels),
    )
    output.loss.backward()
    assert after.loss_sum / after.examples == pytest.approx(output.loss.item(), rel=1e-5)
    for name, leaf in leaves.items():
        moved = (start[name] - after.tensors[name]) / 0.5
        largest = float(leaf.grad.abs().max())
        assert np.abs(moved - leaf.grad.numpy()).max() <= 1e-4 * largest, name


def adapt(model: Any, tensors: dict[str, Any], *, scaling: float) -> dict[str, torch.Tensor]:
    """Hang low-rank branches on a torch model; its leaves by canonical name."""
    leaves = {
        name: torch.from_numpy(value).double().requires_grad_() for name, value in tensors.items()
    }
    for path in {name.rpartition(".")[0] for name in tensors}:
        a, b = leaves[f"{path}.lora_A"], leaves[f"{path}.lora_B"]

        def branch(_module: Any, inputs: Any, output: Any, a: Any = a, b: Any = b) -> Any:
            return output + scaling * (inputs[0] @ a.T @ b.T)

        model.get_submodule(path).register_forward_hook(branch)
    return leaves


def test_scores_are_sums_over_the_tokens_that_count(
    worker: Callable[..., Worker], bases: dict[str, Path]
) -> None:
    site = worker()
    rows = site.encode(rows_of(*(chat(WORDS[at], " ".join(WORDS[: at + 1])) for at in range(5))))
    score = site.score(site.recipe.start(), rows)
    model = torch_decoder(bases["chat"])
    loss = tokens = right = 0.0
    for row in range(len(rows)):
        batch = collate(rows, np.array([row]))
        logits = model(input_ids=torch.from_numpy(batch.ids)).logits[0]
        counted = batch.targets[0] >= 0
        wanted = torch.from_numpy(batch.targets[0][counted])
        loss += torch.nn.functional.cross_entropy(logits[counted], wanted, reduction="sum").item()
        right += int((logits[counted].argmax(-1) == wanted).sum())
        tokens += int(counted.sum())
    assert (score.tokens, score.right, score.examples) == (tokens, right, 5)
    assert score.loss == pytest.approx(loss, rel=1e-5)
    assert list(score.metrics) == ["eval_examples", "eval_tokens", "eval_right", "eval_loss"]


def test_micro_batches_change_nothing_but_roundings(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = worker()
    rows = site.encode(rows_of(*(chat(WORDS[at], " ".join(WORDS[: at + 1])) for at in range(6))))
    start, parts = site.recipe.start(), site.recipe.parts(1)

    def trained() -> dict[str, Any]:
        return train(site.engine, start, rows, local=site.plan.local, parts=parts, seed=0).tensors

    whole = trained()
    monkeypatch.setattr("client.training.MOST_OF_TEXTS", 20)
    for name, value in trained().items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-3, atol=2e-4)


def test_a_program_of_a_decoder_holds_no_weight_and_opens_again(
    worker: Callable[..., Worker], bases: dict[str, Path], tmp_path: Path
) -> None:
    forget()
    site = worker()
    program = site.engine._program
    weights = (bases["chat"] / "weights.safetensors").stat().st_size
    assert max(map(len, program.graphs.values())) < weights
    assert program.document.task == "causal-lm"
    keep_program(program, tmp_path / "program")
    opened = open_program(tmp_path / "program", site.recipe)
    assert opened.graphs == program.graphs


@pytest.mark.parametrize(
    ("base", "sections", "field"),
    [
        ("plain", {}, "task.form"),
        ("chat", {"local": {"engine": "torch"}}, "local.engine"),
        ("chat", {"adapter": {"method": "head"}}, "adapter.method"),
        ("chat", {"task": {"labels": ["a", "b"]}}, "task.kind"),
        ("chat", {"task": {"kind": "causal-lm", "max_length": 97}}, "task.max_length"),
        ("chat", {"adapter": {"targets": ["query"]}}, "adapter.targets"),
    ],
)
def test_a_plan_that_does_not_fit_the_base_says_so(
    bases: dict[str, Path], base: str, sections: dict[str, Any], field: str
) -> None:
    manifest = read_manifest(bases[base])
    document = plan_for(bases[base]).model_dump(mode="json", exclude_defaults=True)
    plan = plan_from(document | sections, source="test")
    errors = [finding for finding in check(plan, manifest) if finding.severity == "error"]
    assert [finding.field for finding in errors] == [field]
    assert all(finding.remedy for finding in errors)


def test_a_plan_that_names_no_targets_adapts_queries_and_values(bases: dict[str, Path]) -> None:
    document = plan_for(bases["chat"]).model_dump(mode="json", exclude_defaults=True)
    plan = plan_from(document | {"adapter": {"rank": 2}}, source="test")
    site = Worker(plan, bases["chat"])
    names = {name.rpartition(".")[0].rpartition(".")[2] for name in site.recipe.start()}
    assert names == {"q_proj", "v_proj"}
    config = site.recipe.method.peft_config(plan.adapter, site.manifest)
    assert len(config["target_modules"]) == 4  # by path: two of two layers


def test_a_plan_for_text_does_not_fit_a_base_that_sorts(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    document = {
        "name": "t",
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"kind": "causal-lm"},
    }
    plan = plan_from(document, source="test")
    (error,) = [f for f in check(plan, manifest) if f.severity == "error"]
    assert "causal-lm" in error.remedy
    with pytest.raises((PlanError, ArtefactError)):
        Worker(plan, tiny_base)


def test_rows_are_read_as_the_plan_says(
    worker: Callable[..., Worker], bases: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"q": WORDS[0], "about": "", "a": WORDS[1]}
    path.write_text(json.dumps(row) + "\n")
    site = worker(form="prompt", prompt="q", completion="a", context="about")
    encoded = site.encode(load_rows(path, site.plan.task))
    text = open_tokenizer(bases["chat"]).decode(encoded.ids.tolist(), skip_special_tokens=True)
    assert text == f"user {WORDS[0]} assistant {WORDS[1]}"
