from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import PlanError
from simulations.experiment import load_experiment
from simulations.keys import Key, experiment_keys, keys_document

KEYS = experiment_keys()


def test_the_page_of_all_keys_is_what_the_models_say() -> None:
    written = Path("docs/experiment-keys.md").read_text("utf-8")
    assert written == keys_document(KEYS), "run: fedge plan keys > docs/experiment-keys.md"


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key.table}.{key.name}")
def test_every_key_says_what_it_means(key: Key) -> None:
    assert key.meaning, "give the field a description"
    assert key.values


def test_every_default_that_is_shown_is_taken(tmp_path: Path) -> None:
    """An experiment with all of them written out is the one without any."""
    file = tmp_path / "x.toml"
    needed = (
        'name = "x"\nbase.source = "s"\ndata.train = "a.csv"\ndata.holdout = 0.5\nplan.name = "x"\n'
    )
    file.write_text(needed)
    short = load_experiment(file)
    taken = {"base.source", "data.train", "data.holdout"}
    sets = [
        f"{path}={key.default}"
        for key in KEYS
        if key.choice in ("", 'kind = "classification"')  # what there is without a choice
        and key.default
        and (path := f"{key.table}.{key.name}".lstrip(".")) not in taken
    ]
    whole = load_experiment(file, sets)
    for each in (short, whole):
        assert each.plan_for(fingerprint="0" * 64, labels=["a", "b"]).seed == 0
    assert whole.model_copy(update={"plan": {}}) == short.model_copy(update={"plan": {}})
    plans = [
        each.plan_for(fingerprint="0" * 64, labels=["a", "b"]).digest for each in (short, whole)
    ]
    assert plans[0] == plans[1]


def test_a_key_that_is_not_on_the_page_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        'name = "x"\nbase.source = "s"\ndata.generator = "home-commands"\nplan.name = "x"\n'
    )
    tables = {key.table for key in KEYS}
    for table in tables:
        path = f"{table}.nonsense".lstrip(".")
        with pytest.raises(PlanError, match="nonsense"):
            load_experiment(file, [f"{path}=1"])
