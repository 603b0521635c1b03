"""One client's part of a round: what it checks, what it starts from, what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, processors

from client import opened_base as opened_base_module
from client.data import Rows, load_rows
from client.engine import choice
from client.training import train
from client.worker import Worker
from protocol.encoding import seed_from, vector_digest
from protocol.errors import ArtefactError, DataError, PlanError, UpdateError
from protocol.exchange.plain import PlainClient, decode
from protocol.layout import Tensors, Vector
from protocol.plan import Plan
from protocol.tasks.classification import METRICS
from protocol.wire import Instruction
from tests.methods import SORTING

Make = Callable[..., Plan]
Instruct = Callable[..., tuple[Instruction, Vector]]
Adapters = Callable[..., Tensors]


@pytest.fixture(autouse=True)
def _no_resident_base() -> Iterator[None]:
    """Every test opens its own base and leaves none behind."""
    opened_base_module._bases.clear()
    yield
    opened_base_module._bases.clear()


@pytest.mark.parametrize("rule", ["mean", "alternating", "first", *SORTING])
@pytest.mark.parametrize("round_number", [1, 2])
def test_a_contribution_is_the_difference_in_the_layout_of_the_round(
    tiny_base: Path, make_plan: Make, instruct: Instruct, rows: Rows, rule: str, round_number: int
) -> None:
    plan = make_plan(rule)
    instruction, vector = instruct(plan, round=round_number)
    work = Worker(plan, tiny_base)
    given = work.contribute(client="a", instruction=instruction, adapter=vector, rows=rows)
    sent = work.recipe.round_layout(round_number)
    assert given.update.dtype == np.float32
    assert given.update.shape == (sent.size,)
    start = work.check(instruction, vector).adapter
    after = train(
        work.engine,
        start,
        work.encode(rows),
        local=plan.local,
        parts=work.recipe.parts(round_number),
        seed=seed_from("train", plan.seed, round_number, "a"),
        recipe=work.recipe,
    ).tensors
    expected = sent.flatten({s.name: after[s.name] - start[s.name] for s in sent.specs})
    assert np.array_equal(given.update, expected)
    assert np.abs(given.update).max() > 0
    assert given.weight == len(rows)
    assert list(given.metrics) == list(METRICS)
    most = plan.cohort.max_weight
    decode("a", PlainClient().mask(given), size=sent.size, max_weight=most, metrics=METRICS)


def test_an_update_that_is_not_finite_is_an_update_error(
    tiny_base: Path, make_plan: Make, instruct: Instruct, rows: Rows
) -> None:
    """The loss of the last step is finite, what it did to the weights is not."""
    plan = make_plan(
        "mean",
        local={"max_steps": 1, "learning_rate": 1e30, "weight_decay": 1e30, "batch_size": 8},
    )
    instruction, vector = instruct(plan)
    with pytest.raises(UpdateError, match="not finite"):
        Worker(plan, tiny_base).contribute(
            client="a", instruction=instruction, adapter=vector, rows=rows
        )


def test_the_same_instruction_gives_the_same_bits_whoever_worked_before(
    tiny_base: Path, make_plan: Make, instruct: Instruct, rows: Rows
) -> None:
    plan = make_plan("mean")
    instruction, vector = instruct(plan)
    work = Worker(plan, tiny_base)
    updates = [
        work.contribute(
            client=c, instruction=instruction, adapter=vector, rows=rows
        ).update.tobytes()
        for c in ("a", "b", "a")
    ]
    assert updates[0] == updates[2] != updates[1]


def test_holdout_is_seeded_per_client_and_stable(
    tiny_base: Path, make_plan: Make, instruct: Instruct, rows: Rows
) -> None:
    plan = make_plan(evaluation={"holdout": 0.2})
    work = Worker(plan, tiny_base)
    encoded = work.encode(rows)
    encoded.targets[:] = np.arange(len(rows))  # mark the rows
    kept, out = work.split("a", encoded)
    again, _ = work.split("a", encoded)
    other, _ = work.split("b", encoded)
    assert len(out) == 18
    assert sorted([*kept.targets, *out.targets]) == list(range(90))
    assert kept.targets.tolist() == again.targets.tolist() != other.targets.tolist()
    encoded = work.encode(rows)
    for asked, examples in ((True, 18), (False, 0)):
        instruction, vector = instruct(plan, evaluate=asked)
        given = work.contribute(client="a", instruction=instruction, adapter=vector, rows=encoded)
        assert given.metrics["eval_examples"] == examples
        assert given.metrics["eval_correct"] <= examples
        assert given.metrics["examples"] == given.weight == 72


def test_the_received_adapter_is_what_is_evaluated(
    tiny_base: Path, make_plan: Make, instruct: Instruct, rows: Rows, random_adapter: Adapters
) -> None:
    plan = make_plan(evaluation={"holdout": 0.5})
    tensors = random_adapter(plan)
    tensors["classifier.weight"][:] = 0
    tensors["classifier.bias"][:] = [0, 9, 0]  # says "1" to everything
    instruction, vector = instruct(plan, tensors=tensors, evaluate=True)
    work = Worker(plan, tiny_base)
    given = work.contribute(client="a", instruction=instruction, adapter=vector, rows=rows)
    _, out = work.split("a", work.encode(rows))
    assert given.metrics["eval_correct"] == int((out.targets == 1).sum()) > 0


def test_uniform_weighting(
    tiny_base: Path, make_plan: Make, instruct: Instruct, rows: Rows
) -> None:
    plan = make_plan(cohort={"weighting": "uniform"})
    instruction, vector = instruct(plan)
    work = Worker(plan, tiny_base)
    given = work.contribute(client="a", instruction=instruction, adapter=vector, rows=rows)
    assert given.weight == 1


REFUSED = {
    "plan": ({"plan_digest": "0" * 64}, "runs plan 000000000000…"),
    "base": ({"base": "1" * 64}, "names base 111111111111…"),
    "digest": ({"adapter_digest": "2" * 64}, "not the one the instruction names"),
    "round": ({"round": 0}, "names round 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_instruction_that_does_not_belong_is_refused(
    tiny_base: Path, make_plan: Make, instruct: Instruct, rows: Rows, case: str
) -> None:
    fields, expected = REFUSED[case]
    plan = make_plan()
    good, vector = instruct(plan)
    values = {name: getattr(good, name) for name in good.__dataclass_fields__}
    bad = Instruction(**(values | fields))
    with pytest.raises(ArtefactError) as caught:
        Worker(plan, tiny_base).contribute(client="a", instruction=bad, adapter=vector, rows=rows)
    assert expected in caught.value.cause


def test_a_changed_a_short_and_a_non_finite_adapter_are_refused(
    tiny_base: Path, make_plan: Make, instruct: Instruct, rows: Rows
) -> None:
    plan = make_plan()
    instruction, vector = instruct(plan)
    work = Worker(plan, tiny_base)
    changed = vector.copy()
    changed[3] += 1
    with pytest.raises(ArtefactError, match="not the one the instruction names"):
        work.check(instruction, changed)
    for bad, expected in ((vector[:-1], "does not fit"), (vector * np.float32("nan"), "NaN")):
        values = {name: getattr(instruction, name) for name in instruction.__dataclass_fields__}
        named = Instruction(**(values | {"adapter_digest": vector_digest(bad)}))
        with pytest.raises(ArtefactError, match=expected):
            work.check(named, bad)


def test_a_client_without_rows_is_refused(
    tiny_base: Path, make_plan: Make, instruct: Instruct
) -> None:
    plan = make_plan()
    instruction, vector = instruct(plan)
    with pytest.raises(DataError, match="client a has no rows"):
        Worker(plan, tiny_base).contribute(
            client="a", instruction=instruction, adapter=vector, rows=Rows(texts=[], targets=[])
        )


def test_a_text_without_tokens_is_named_by_file_and_line(
    tiny_base: Path, make_plan: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = Worker(make_plan(), tiny_base)
    bare = Tokenizer.from_str(site._base.tokenizer.to_str())
    bare.normalizer, bare.post_processor = (
        normalizers.Replace("secret", ""),
        processors.Sequence([]),
    )
    opened = replace(site._base, texts=bare)
    monkeypatch.setattr(site, "_base", opened)
    path, label = tmp_path / "rows.csv", site.plan.task.labels[0]
    path.write_text(f'text,label\n"the\nthe",{label}\nsecret,{label}\n')
    with pytest.raises(DataError) as refused:
        site.encode(load_rows(path, site.plan.task))
    assert refused.value.cause == f"{path}: line 4: its text has no tokens"
    assert refused.value.public == "a text has no tokens"


def test_another_base_is_refused_before_it_is_opened(tiny_base: Path, make_plan: Make) -> None:
    with pytest.raises(ArtefactError, match="holds base"):
        Worker(make_plan(base={"fingerprint": "0" * 64}), tiny_base)


def test_texts_longer_than_the_base_reads_are_refused(tiny_base: Path, make_plan: Make) -> None:
    task = {"labels": ["a", "b"], "max_length": 60_000}
    with pytest.raises(PlanError, match="positions"):
        Worker(make_plan(task=task), tiny_base)


def test_workers_share_a_base_and_its_program(tiny_base: Path, make_plan: Make) -> None:
    first = Worker(make_plan(), tiny_base)
    second = Worker(make_plan(rounds=4), tiny_base)
    assert first.engine is second.engine
    third = Worker(make_plan("alternating"), tiny_base)
    assert third.engine is not first.engine
    assert third._base is first._base
    for labels in (["a", "b"], ["a", "b", "c", "d"], ["e", "f", "g", "h", "i"]):
        Worker(make_plan(task={"labels": labels, "max_length": 16}), tiny_base)
    assert len(choice._engines) == choice.ENGINES
