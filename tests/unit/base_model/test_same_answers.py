"""One model is one base in every container and by every name, and its answers are transformers' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from base_model.build import build_base
from base_model.commands import app
from base_model.store import open_base
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from protocol.errors import ArtefactError, FedgeError
from tests.tiers import each_once, one_by_default, some_by_default
from tests.unit.base_model.sources import (
    CONTAINERS,
    FAMILIES,
    LABELS,
    TEXTS,
    WORDS_64,
    add_pooling,
    as_cache,
    write_source,
)

TASK = "sequence-classification"


def identity(source: str, *, pooling: str = "auto") -> dict[str, object]:
    """Everything that a fingerprint is made of, without exporting a graph."""
    from base_model.build import model_of
    from base_model.quantised import config_text
    from base_model.source import load_source

    loaded = load_source(source, pooling=pooling)
    parts: dict[str, object] = {
        name: value.numpy().tobytes() for name, value in model_of(loaded).named_parameters()
    }
    return parts | {
        "config": config_text(loaded.config, loaded.labels),
        "tokenizer": loaded.tokenizer,
        "pooling": loaded.pooling,
    }


def transformers_logits(source: Path, texts: list[str]) -> np.ndarray:
    """Each text alone: nothing is padded."""
    model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
    return torch.cat(rows).numpy()


def transformers_features(source: Path, texts: list[str], pooling: str) -> np.ndarray:
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        rows = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts
        ]
    return torch.stack([row.mean(0) if pooling == "mean" else row[0] for row in rows]).numpy()


def edge_logits(
    base: EdgeBase, texts: list[str], extra: dict[str, np.ndarray] | None = None
) -> np.ndarray:
    """All texts in one batch: the short ones are padded."""
    feeds = base.batch(texts, max_length=base.manifest.max_positions)
    inputs = feeds | (extra or {})
    answers: np.ndarray = base.session.run(["logits"], inputs)[0]
    return answers


def own_logits(folder: Path, texts: list[str]) -> np.ndarray:
    opened = open_base(folder)
    encoded = opened.tokenizer.encode_batch(texts)
    ids = torch.tensor([one.ids for one in encoded])
    with torch.no_grad():
        return opened.model(
            ids, torch.tensor([one.attention_mask for one in encoded])
        ).logits.numpy()


def shown(width: int) -> dict[str, np.ndarray]:
    """A head that shows the features."""
    weight = np.eye(width, dtype=np.float32)
    return {"classifier.weight": weight, "classifier.bias": np.zeros(width, np.float32)}


@pytest.fixture(scope="module", params=one_by_default("roberta", FAMILIES))
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A source with its own head, and its base at 32 bits."""
    folder = tmp_path_factory.mktemp("classifier")
    source = write_source(folder / "source", family=request.param, classifier=True)
    manifest = build_base(str(source), task=TASK, bits=32, out=folder / "base")
    return source, folder / "base", manifest


def test_a_base_answers_as_its_source_does_in_transformers(classifier) -> None:  # type: ignore[no-untyped-def]
    source, base, manifest = classifier
    expected = transformers_logits(source, TEXTS)
    assert len(set(expected.argmax(1))) > 1  # a model that says one label to all tests nothing
    for answers in (edge_logits(EdgeBase.open(base), TEXTS), own_logits(base, TEXTS)):
        assert np.abs(answers - expected).max() <= 1e-4
        assert (answers.argmax(1) == expected.argmax(1)).all()
    assert manifest.head.labels == len(LABELS)
    names = json.loads((base / "config.json").read_text())["id2label"]
    assert [names[str(index)] for index in range(len(LABELS))] == LABELS
    answered = EdgeRuntime(EdgeBase.open(base)).infer(TEXTS)
    assert [answer.label for answer in answered] == [LABELS[row] for row in expected.argmax(1)]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_classifier_is_one_base_in_every_container(
    tmp_path: Path, family: str, container: str
) -> None:
    plain = identity(str(write_source(tmp_path / "plain", family=family, classifier=True)))
    other = write_source(tmp_path / "other", family=family, classifier=True)
    assert identity(CONTAINERS[container](other)) == plain
    assert plain["pooling"] == "pooler"


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_one_sentence_encoder_is_one_base_in_every_container(
    tmp_path: Path, pooling: str, container: str
) -> None:
    plain = identity(str(write_source(tmp_path / "plain", pooling=pooling)))
    other = write_source(tmp_path / "other", pooling=pooling)
    assert identity(CONTAINERS[container](other)) == plain
    assert plain["pooling"] == pooling


@pytest.mark.parametrize("classifies", [True, False])
def test_a_hub_id_is_the_folder(
    tmp_path: Path, classifies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooling = "" if classifies else "mean"
    plain = write_source(tmp_path / "plain", classifier=classifies, pooling=pooling)
    other = write_source(tmp_path / "other", classifier=classifies, pooling=pooling)
    cache = as_cache(other, name="owner/some-model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert identity("owner/some-model") == identity(str(plain))
    with pytest.raises(FedgeError, match="owner/nothing") as refused:
        identity("owner/nothing")
    assert refused.value.exit_code in (5, 8)


@pytest.mark.parametrize("family", some_by_default((), ["distilbert", "roberta"]))
def test_an_encoder_with_a_pooling_gives_transformers_features(tmp_path: Path, family: str) -> None:
    source = write_source(tmp_path / "source", family=family, pooling="mean")
    manifest = build_base(str(source), task=TASK, bits=32, out=tmp_path / "base")
    assert not [name for name in manifest.tensors if "pooler" in name]
    answers = edge_logits(EdgeBase.open(tmp_path / "base"), TEXTS, shown(32))
    assert np.abs(answers - transformers_features(source, TEXTS, "mean")).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("family", "container"), each_once(FAMILIES, list(CONTAINERS)))
def test_every_container_of_every_family_built_and_asked(
    tmp_path: Path, family: str, container: str
) -> None:
    plain = write_source(tmp_path / "plain", family=family, classifier=True)
    other = CONTAINERS[container](write_source(tmp_path / "other", family=family, classifier=True))
    manifest = build_base(other, task=TASK, bits=32, out=tmp_path / "base")
    answers = edge_logits(EdgeBase.open(tmp_path / "base"), TEXTS)
    assert np.abs(answers - transformers_logits(plain, TEXTS)).max() <= 1e-4
    again = build_base(str(plain), task=TASK, bits=32, out=tmp_path / "again")
    assert again.fingerprint == manifest.fingerprint
    sentence = write_source(tmp_path / "sentence", family=family, pooling="cls")
    expected = transformers_features(sentence, TEXTS, "cls")
    build_base(
        CONTAINERS[container](
            write_source(tmp_path / "second" / "t", family=family, pooling="cls")
        ),
        task=TASK,
        bits=32,
        out=tmp_path / "sentences",
    )
    answers = edge_logits(EdgeBase.open(tmp_path / "sentences"), TEXTS, shown(32))
    assert np.abs(answers - expected).max() <= 1e-4


def test_a_source_that_says_two_things_is_asked_about(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", classifier=True, pooling="mean")
    with pytest.raises(ArtefactError, match="as a sentence encoder, and by its first") as refused:
        identity(str(source))
    assert "--pooling pooler" in refused.value.remedy
    assert "--pooling mean" in refused.value.remedy
    kept = identity(str(source), pooling="pooler")
    plain = identity(str(write_source(tmp_path / "plain", classifier=True)))
    assert kept == plain
    without = identity(str(source), pooling="mean")
    assert without["classifier.weight"] == bytes(2 * 32 * 4)


@pytest.mark.parametrize(
    ("modes", "cause"),
    [
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            "max and mean|mean and max",
        ),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls and mean"),
        ({"pooling_mode": ["mean", "cls"]}, "mean and cls"),
        ({"pooling_mode_max_tokens": True}, "by max is not supported"),
        ({"pooling_mode": "lasttoken"}, "by lasttoken is not supported"),
        ({"pooling_mode_mean_tokens": False}, "by nothing"),
        ({"pooling_mode": 7}, "cannot be read"),
    ],
)
def test_a_pooling_that_a_base_has_not_is_refused(
    tmp_path: Path, modes: dict[str, object], cause: str
) -> None:
    source = write_source(tmp_path / "source")
    add_pooling(source, modes)
    with pytest.raises(ArtefactError, match=cause) as refused:
        identity(str(source))
    assert "--pooling" in refused.value.remedy
    assert identity(str(source), pooling="mean")["pooling"] == "mean"


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_old_and_new_names_of_a_pooling_are_one(tmp_path: Path, mode: str) -> None:
    old = write_source(tmp_path / "old", pooling=mode)
    for number, modes in enumerate([{"pooling_mode": mode}, {"pooling_mode": [mode]}]):
        new = write_source(tmp_path / str(number))
        add_pooling(new, modes)
        assert identity(str(new)) == identity(str(old))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_another_task_is_left_out_and_said_so(tmp_path: Path, family: str) -> None:
    from base_model.source import load_source

    source = write_source(tmp_path / "source", family=family, classifier=True)
    config = json.loads((source / "config.json").read_text())
    config["architectures"] = [config["architectures"][0].replace("Sequence", "Token")]
    (source / "config.json").write_text(json.dumps(config))
    loaded = load_source(str(source), pooling="cls")
    assert loaded.labels is None
    assert any(
        "left out" in reason and "TokenClassification" in reason for reason in loaded.reasons
    )


def test_the_pooling_and_its_reason_are_told(tmp_path: Path) -> None:
    from base_model.source import load_source

    told = {
        name: load_source(str(source), pooling=asked).reasons[0]
        for name, source, asked in [
            ("file", write_source(tmp_path / "a", pooling="mean"), "auto"),
            ("asked", write_source(tmp_path / "b", pooling="mean"), "cls"),
            ("usual", write_source(tmp_path / "c"), "auto"),
            ("head", write_source(tmp_path / "d", classifier=True), "auto"),
        ]
    }
    assert told["file"] == "pooling mean: 1_Pooling/config.json of the source says so"
    assert told["asked"] == "pooling cls: asked for"
    assert told["usual"].startswith("pooling pooler: usual for bert")
    assert "--pooling mean" in told["usual"]
    assert told["head"].startswith("pooling pooler: the source has a classifier")


@pytest.mark.parametrize("as_json", one_by_default(True, [True, False]))
def test_the_command_says_which_pooling_and_why(tmp_path: Path, as_json: bool) -> None:
    source = write_source(tmp_path / "source", pooling="mean")
    arguments = ["build", str(source), "--out", str(tmp_path / "base"), "--bits", "8"]
    result = CliRunner().invoke(app, [*arguments, *(["--json"] if as_json else [])])
    assert result.exit_code == 0
    reason = "pooling mean: 1_Pooling/config.json of the source says so"
    if as_json:
        assert json.loads(result.stdout)["reasons"] == [reason]
    else:
        assert reason.split(":")[0] in result.stdout


PADS = [("roberta", 4), ("xlm-roberta", 0)]  # 1 is what the classifiers above have


@pytest.fixture(
    scope="module", params=some_by_default((), PADS), ids=lambda pad: f"{pad[0]} {pad[1]}"
)
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A source whose positions are counted from its padding id, its base, and both opened."""
    family, pad = request.param
    folder = tmp_path_factory.mktemp("counted")
    source = write_source(folder / "source", family=family, pad=pad, classifier=True)
    build_base(str(source), task=TASK, bits=32, out=folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    return (
        pad,
        model,
        AutoTokenizer.from_pretrained(source),
        EdgeBase.open(folder / "base"),
        (open_base(folder / "base")),
    )


words = st.sampled_from(["<s>", "</s>", "<unk>", "<mask>", "<pad>", "<pad> <pad>", "?", *WORDS_64])


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.lists(words, max_size=12).map(" ".join), min_size=1, max_size=4))
def test_texts_with_special_tokens_have_the_same_logits_everywhere(counted, texts) -> None:  # type: ignore[no-untyped-def]
    _, model, tokenizer, base, opened = counted
    with torch.no_grad():
        expected = torch.cat(
            [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
        )
        encoded = opened.tokenizer.encode_batch(texts)
        ids, mask = (
            torch.tensor([getattr(one, kind) for one in encoded])
            for kind in ("ids", "attention_mask")
        )
        own = opened.model(ids, mask).logits
        embedded = opened.model.get_input_embeddings()(ids)
        by_embeddings = opened.model(inputs_embeds=embedded, attention_mask=mask).logits
    edge = torch.from_numpy(edge_logits(base, texts))
    for answers in (own, by_embeddings, edge):
        assert (answers - expected).abs().max() <= 1e-4


def test_a_prompt_before_a_text_with_pads_is_counted_alike(counted) -> None:  # type: ignore[no-untyped-def]
    *_, base, opened = counted
    prompt = np.random.default_rng(0).normal(0, 0.3, (3, 32)).astype(np.float32)
    encoded = opened.tokenizer.encode_batch(TEXTS)
    ids, mask = (
        torch.tensor([getattr(one, kind) for one in encoded]) for kind in ("ids", "attention_mask")
    )
    words_in = opened.model.get_input_embeddings()(ids)
    first = torch.from_numpy(prompt).expand(len(TEXTS), -1, -1)
    with torch.no_grad():
        expected = opened.model(
            inputs_embeds=torch.cat([first, words_in], 1),
            attention_mask=torch.cat([torch.ones(len(TEXTS), 3, dtype=mask.dtype), mask], 1),
        ).logits.numpy()
    answers = edge_logits(base, TEXTS, {"soft_prompt": prompt})
    assert np.abs(answers - expected).max() <= 1e-4


def test_as_many_positions_as_the_table_has(counted) -> None:  # type: ignore[no-untyped-def]
    pad, model, tokenizer, base, opened = counted
    longest = base.manifest.max_positions
    assert longest == 40 - (pad + 1)
    text = " ".join(["light"] * (longest - 2))
    encoded = tokenizer(text, return_tensors="pt")
    assert encoded.input_ids.shape[1] == longest
    with torch.no_grad():
        expected = model(**encoded).logits
        own = opened.model(encoded.input_ids, encoded.attention_mask).logits
    assert (own - expected).abs().max() <= 1e-4
    assert np.abs(edge_logits(base, [text]) - expected.numpy()).max() <= 1e-4
