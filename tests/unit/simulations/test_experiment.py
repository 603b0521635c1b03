"""Experiments as files: what is accepted, what is refused and how it is said."""

from pathlib import Path

import pytest

from protocol.errors import MachineError, PlanError
from simulations.experiment import (
    experiment_path,
    load_experiment,
    resolve_source,
    shipped,
)
from tests.plan_texts import commented_plan

TEXT = """
format = 1
name = "small"
[base]
source = "model"
[data]
train = "train.jsonl"
test = "test.jsonl"
[population]
clients = 4
[plan]
rounds = 3
[plan.cohort]
size = 3
quorum = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return path


def test_the_plan_is_completed(file: Path) -> None:
    plan = load_experiment(file).plan_for(fingerprint="a" * 64, labels=["x", "y", "z"])
    assert (plan.name, plan.rounds, plan.task.labels) == ("small", 3, ["x", "y", "z"])
    assert plan.base.fingerprint == "a" * 64


def test_a_personal_head_is_for_bases_that_have_one(file: Path) -> None:
    head = 'yardsticks.personal_parts="head"'
    assert load_experiment(file, [head]).yardsticks.personal_parts == "head"
    with pytest.raises(PlanError, match="no head to train"):
        load_experiment(file, [head, 'plan.task={kind = "causal-lm"}', "plan.rule.name=mean"])


def test_a_round_asks_no_more_than_the_clients_named(file: Path) -> None:
    named = 'plan.cohort.clients=["client-0001","client-0002","client-0003"]'
    assert load_experiment(file, [named]).plan["cohort"]["size"] == 3
    with pytest.raises(PlanError, match="size` is 4, but there are 3 clients named"):
        load_experiment(file, [named, "plan.cohort.size=4"])


def test_labels_of_the_experiment_win(file: Path) -> None:
    experiment = load_experiment(file, ['plan.task.labels=["q", "r"]'])
    assert experiment.plan_for(fingerprint="a" * 64, labels=["x", "y"]).task.labels == ["q", "r"]


def test_overrides_are_toml_values_or_strings(file: Path) -> None:
    experiment = load_experiment(
        file, ["plan.rounds=7", "population.alpha=0.1", "population.partition=iid", "name=other"]
    )
    assert experiment.plan["rounds"] == 7
    assert (experiment.population.alpha, experiment.population.partition) == (0.1, "iid")
    assert experiment.name == "other"


def test_another_method_leaves_the_keys_of_the_file_behind(file: Path) -> None:
    """What the user sets beside it stays, and is refused where the method has no such key."""
    text = file.read_text() + "[plan.adapter]\nrank = 4\nalpha = 8.0\n"
    file.write_text(text)
    prompt = load_experiment(file, ["plan.adapter.tokens=3", "plan.adapter.method=prompt"])
    assert prompt.plan["adapter"] == {"method": "prompt", "tokens": 3}
    cores = load_experiment(file, ["plan.adapter.method=lora-sb"])
    assert cores.plan["adapter"] == {"method": "lora-sb", "rank": 4, "alpha": 8.0}
    with pytest.raises(PlanError, match=r"unknown key `adapter\.rank`"):
        load_experiment(file, ["plan.adapter.rank=3", "plan.adapter.method=prompt"])
    file.write_text(text.replace("rank = 4", "rnak = 4"))
    with pytest.raises(PlanError, match=r"unknown key `adapter\.rnak`"):  # it was never anybody's
        load_experiment(file, ["plan.adapter.method=lora-sb"])
    file.write_text("plan = 3\n")
    with pytest.raises(PlanError):
        load_experiment(file, ["plan.adapter.method=lora-sb"])


def test_scales_that_a_base_would_lack_are_asked_for_before_it_is_built(file: Path) -> None:
    with pytest.raises(PlanError, match="fills scales") as refused:
        load_experiment(file, ["plan.adapter.method=ia3"])
    assert "base.scales" in refused.value.remedy
    load_experiment(file, ["plan.adapter.method=ia3", "base.scales=true"])


def test_seconds_are_of_a_base_of_sounds(file: Path) -> None:
    with pytest.raises(PlanError, match=r"`base\.seconds` is for a base of sounds"):
        load_experiment(file, ["base.seconds=2"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("population.client=3", "did you mean `clients`"),
        ("plan.round=3", "did you mean `rounds`"),
        ("plan.cohort.sise=3", "did you mean `size`"),
        ("population.clients=many", "population.clients"),
        ("plan.cohort.size=9", "4 clients"),
        ('plan.cohort.clients=["client-0001","client-0002","client-0004"]', "client-0004"),
        ("plan.base.fingerprint=abc", "plan.base"),
        ("faults.dropout=1.5", "faults.dropout"),
        ("data.generator=home-commands", "either train and test, or a generator"),
        ("data.holdout=0.2", "not both"),
        ("data.test=", "test or holdout"),
        ("data.train=", "one is missing"),
        ("cohort.size=3", "write [plan.cohort]"),
        ("rounds=3", "write `plan.rounds`"),
        ("task.text=utterance", "write [plan.task]"),
        ("rule.name=fedit", "write [plan.rule]"),
        ("population.quorum=3", "write `plan.cohort.quorum`"),
        ("plan.batch_size=3", "write `local.batch_size`"),
        ("data.clients=3", "write `population.clients`"),
        ("population.partition=column", "name of a column"),
        ("base.sha256=123", "base.sha256"),
        ("name.x=1", "no table"),
        ("rounds", "not of the form"),
        ("plan=3", "plan"),
    ],
)
def test_wrong_experiments_are_refused(file: Path, override: str, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_experiment(file, [override])
    assert says in str(caught.value)
    assert "\n" not in caught.value.cause


def test_a_plan_that_must_not_run_is_refused_before_anything_is_built(file: Path) -> None:
    with pytest.raises(PlanError, match=r"cohort\.quorum.*no secret"):
        load_experiment(file, ["plan.cohort.quorum=2"])


def test_a_plan_is_no_experiment(file: Path) -> None:
    file.write_text(commented_plan("a" * 64))
    with pytest.raises(PlanError, match="a plan, not an experiment"):
        load_experiment(file)


def test_text_that_is_no_toml(file: Path) -> None:
    file.write_text("name = = 3")
    with pytest.raises(PlanError, match="not valid TOML"):
        load_experiment(file)


def test_a_missing_file_is_named_with_what_ships(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        load_experiment(tmp_path / "nowhere.toml")
    assert "nowhere.toml" in caught.value.cause
    assert "banking77" in caught.value.remedy


def test_every_shipped_experiment_is_valid() -> None:
    assert "banking77" in shipped()
    for name in shipped():
        assert load_experiment(experiment_path(name)).name == name


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("{}")
    monkeypatch.setenv("FEDGE_SHARED", str(tmp_path))
    here = Path("/nowhere")
    assert resolve_source("shared:data/a.jsonl", folder=here) == tmp_path / "data" / "a.jsonl"
    assert resolve_source("data/a.jsonl", folder=tmp_path).is_file()
    with pytest.raises(MachineError, match="FEDGE_SHARED"):
        resolve_source("shared:data/b.jsonl", folder=here)
    with pytest.raises(MachineError, match="relative to the experiment"):
        resolve_source("data/b.jsonl", folder=tmp_path)
