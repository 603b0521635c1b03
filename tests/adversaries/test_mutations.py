"""Nothing that a run publishes can be changed without an auditor naming the round and the thing.

First a copy that was damaged on its way, then a coordinator that signs its lies. Places are chosen by a
hash, so that a failure comes again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from protocol.encoding import canonical_json, seed_from, vector_digest
from protocol.errors import FedgeError
from protocol.manifest import parse_manifest
from protocol.methods import METHODS
from protocol.peft_format import folder_head, to_peft
from protocol.plan import plan_from_text
from protocol.secagg import client, shamir
from protocol.secagg.contexts import session_id
from protocol.secagg.primitives import client_id
from protocol.step.checkpoint import decode_checkpoint, encode_checkpoint
from protocol.tensor_file import decode_tensors, encode_tensors
from protocol.transparency.leaf_codec import decode_leaf, encode_message, sha256
from protocol.transparency.leaves import Advert
from tests.adversaries.forger import Forger, kind_of, linked
from tests.adversaries.mutated import faults_of
from tests.methods import CORES
from tests.unit.audit.runs import Sites, make_run

SUM_KINDS = ("advert", "cohort", "shares", "round-open", "vector", "alive", "reveal", "aggregate")


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    privacy = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 20.0}
    folder = tmp_path_factory.mktemp("private") / "run"
    return make_run(folder, adapter=CORES, privacy=privacy)


@pytest.fixture
def forge(tmp_path: Path, honest: Path) -> Callable[..., Forger]:
    def make(run: Path = honest) -> Forger:
        return Forger(linked(run, tmp_path / "forged"))

    return make


# -- a coordinator that signs its lies ------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SUM_KINDS, "adapter", "roster"])
def test_a_leaf_left_out_or_told_twice(kind: str, forge: Callable[..., Forger]) -> None:
    forger = forge()
    index = forger.at(kind, 0 if kind == "roster" else 1)
    del forger.entries[index]
    found = faults_of(forger.sign())
    assert any("round 1" in each or "round 2" in each for each in found), found
    if kind == "roster":
        return  # the same roster again says nothing new
    forger = forge()
    forger.entries.insert(index, forger.entries[index])
    found = faults_of(forger.sign())
    assert any("round 1" in each or "round 2" in each for each in found), found


def test_leaves_in_another_order(forge: Callable[..., Forger]) -> None:
    start = forge().at("advert")
    stop = forge().at("adapter", 1)
    for index in range(start, stop):
        forger = forge()
        entries = forger.entries
        entries[index], entries[index + 1] = entries[index + 1], entries[index]
        assert any("round 1" in each for each in faults_of(forger.sign())), index


def fields_of(entry: bytes) -> Iterator[tuple[str, ...]]:
    """Every place in a leaf where there is a value; of lists and long objects the last."""
    leaf = decode_leaf(entry).leaf

    def walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(value, dict) and value:
            keys = (
                list(value) if path == () or path[-1] in ("terms", "instruction") else [max(value)]
            )
            for key in keys:
                yield from walk(value[key], (*path, key))
        else:
            yield path

    yield from walk(leaf.model_dump(mode="json"), ())


def altered(value: Any) -> Any:
    """Another value of the same form, as near as can be."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, list):
        return value[:-1] if value else ["0" * 32]
    if value is None:
        return 3
    if value and set(value) <= set("0123456789abcdef"):
        return value[:-1] + ("0" if value[-1] != "0" else "1")
    return {"": "00", "secagg": "plain"}.get(value, f"{value}x")


def test_every_field_of_every_leaf_of_a_round(forge: Callable[..., Forger]) -> None:
    """Of each kind the first; the code's digest alone is what nobody can check."""
    honest = forge()
    kinds = {}
    for index, entry in enumerate(honest.entries[: honest.at("adapter", 1) + 1]):
        kinds[kind_of(entry)] = index
    assert {*SUM_KINDS, "plan", "roster", "adapter"} == set(kinds)
    for kind, index in kinds.items():
        for path in fields_of(honest.entries[index]):
            if path == ("code",):
                continue
            forger = forge()

            def change(value: Any, path: tuple[str, ...] = path) -> None:
                for key in path[:-1]:
                    value = value[key]
                value[path[-1]] = altered(value[path[-1]])

            forger.edit(index, change)
            assert faults_of(forger.sign(), 1), (kind, path)


EXTREMES: tuple[Any, ...] = (0, 2**53 - 1, 70_000, "", "ff" * 40, [], {}, None, ["ff" * 16] * 3)


def test_nothing_that_is_signed_makes_an_auditor_stumble(forge: Callable[..., Forger]) -> None:
    """Values of any size and type end in a finding, never in an error of the program."""
    honest = forge()
    last = honest.at("adapter", 1)
    kinds = {kind_of(entry): at for at, entry in enumerate(honest.entries[: last + 1])}
    for kind, index in kinds.items():
        for number, path in enumerate(fields_of(honest.entries[index])):
            value = EXTREMES[seed_from(kind, number) % len(EXTREMES)]
            forger = forge()

            def change(leaf: Any, path: tuple[str, ...] = path, value: Any = value) -> None:
                for key in path[:-1]:
                    leaf = leaf[key]
                leaf[path[-1]] = value

            forger.edit(index, change)
            if forger.entries != honest.entries:
                found = faults_of(forger.sign(), 1)
                assert found or path == ("code",), (kind, path, value)


def test_every_subject_of_every_statement(forge: Callable[..., Forger]) -> None:
    honest = forge()
    for index, entry in enumerate(honest.entries):
        for name, digest in decode_leaf(entry).subjects.items():
            forger = forge()
            forger.resubject(index, {name: altered(digest)})
            assert faults_of(forger.sign()), (index, kind_of(entry), name)


def test_an_adapter_that_the_sums_do_not_make(forge: Callable[..., Forger]) -> None:
    """Checkpoint, PEFT folder, digests and signatures all agree with each other."""
    forger = forge()
    index, folder = forger.at("adapter", 2), "rounds/0002"
    name = f"{folder}/checkpoint.safetensors"
    state, note = decode_checkpoint((forger.run / name).read_bytes(), source=name)
    state.adapter["classifier.bias"][0] += 1e-3
    vector = [state.adapter[each].reshape(-1) for each in sorted(state.adapter)]
    digest = vector_digest(np.concatenate(vector))
    note = replace(note, adapter_digest=digest)
    forger.republish(name, encode_checkpoint(state, note))
    weights = f"{folder}/adapter/adapter_model.safetensors"
    _, metadata = decode_tensors((forger.run / weights).read_bytes(), source=weights)
    manifest = parse_manifest((forger.run / "manifest.json").read_text(), source="manifest.json")
    head = folder_head(manifest, METHODS["lora"])
    data = encode_tensors(to_peft(state.adapter, method=METHODS["lora"], head=head), metadata)
    forger.republish(weights, data)
    said = json.loads((forger.run / f"{folder}/adapter/release.json").read_text())
    said["adapter_digest"] = digest
    said["files"]["adapter_model.safetensors"] = sha256(data)
    forger.republish(f"{folder}/adapter/release.json", json.dumps(said).encode())
    record = json.loads((forger.run / f"{folder}/record.json").read_text())
    record |= {"adapter_out": digest, "adapter_published": digest}
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    forger.republish(f"{folder}/record.json", text.encode())
    forger.edit(index, lambda leaf: leaf.update(adapter_out=digest, published=digest))
    found = faults_of(forger.sign())
    assert found == [
        "round 2: the step from the sums to the adapter: the sums make another adapter than `adapter_out`"
    ]


def test_a_client_left_out_of_the_sum(forge: Callable[..., Forger]) -> None:
    forger = forge()
    gone = decode_leaf(forger.entries[forger.at("vector")]).leaf.client  # type: ignore[attr-defined]
    del forger.entries[forger.at("vector")]
    forger.edit(forger.at("alive"), lambda leaf: leaf["clients"].remove(gone))
    forger.edit(forger.at("aggregate"), lambda leaf: leaf.update(summands=leaf["summands"] - 1))

    def fewer(leaf: Any) -> None:
        leaf["sums"][0]["summands"] -= 1

    forger.edit(forger.at("adapter", 1), fewer)
    found = faults_of(forger.sign())
    assert any("round 1: the sum of group 0" in each and "alive" in each for each in found), found


def test_two_openings_of_one_attempt(forge: Callable[..., Forger]) -> None:
    forger = forge()
    index = forger.at("round-open")
    forger.entries.insert(index + 1, forger.entries[index])
    forger.edit(index + 1, lambda leaf: leaf["members"].pop())
    found = faults_of(forger.sign())
    assert any("round 1: " in each and "`round-open`" in each for each in found), found


def test_both_seeds_of_a_client_are_the_gravest_fault(
    forge: Callable[..., Forger], sites: Sites
) -> None:
    forger = forge()
    plan = decode_leaf(forger.entries[0]).leaf
    sid = session_id(plan.plan, bytes.fromhex(plan.run))  # type: ignore[attr-defined]
    key = sites.keys[0]
    state, message = client.advertise(key, sid=sid, seq=9, random=os.urandom)
    one = client_id(key.public_key().public_bytes_raw()).hex()
    seeds = [shamir.to_bytes(seed).hex() for seed in (state.self_seed, state.mask_seed)]
    forger.entries.append(encode_message(Advert(group=0, advert=message.hex())))
    for seed in seeds:
        rid = "0" * 64
        predicate = {"seq": 9, "group": 0, "rid": rid, "seeds": {one: seed}, "boxes": ""}
        forger.entries.append(forger.statement("reveal", predicate, {"round": rid}))
    found = faults_of(forger.sign())
    assert any(each.startswith("GRAVE") or "GRAVE: both seeds" in each for each in found), found
    assert any(one in each for each in found)


def test_a_round_hidden_from_the_log(forge: Callable[..., Forger]) -> None:
    forger = forge()
    del forger.entries[forger.at("adapter", 1) + 1 :]
    assert any(
        "round 2 is published, but not in the log" in each for each in faults_of(forger.sign())
    )


def test_a_log_that_shrank_or_changed_is_found_by_who_saw_it(
    forge: Callable[..., Forger], honest: Path
) -> None:
    kept = (honest / "log" / "checkpoint").read_text()
    forger = forge()
    forger.entries.append(forger.statement("pad", {}, {"plan": "0" * 64}))
    forger.edit(forger.at("round-open"), lambda leaf: leaf.update(code="1" * 64))
    with pytest.raises(FedgeError, match="not those that were seen before"):
        load_run(Folder(forger.sign()), Trust(kept=kept))
    forger = forge()
    del forger.entries[forger.at("adapter", 1) + 1 :]
    with pytest.raises(FedgeError, match="shrank"):
        load_run(Folder(forger.sign()), Trust(kept=kept))


# -- privacy --------------------------------------------------------------------------------------


def test_every_field_of_the_ledger(forge: Callable[..., Forger], private: Path) -> None:
    honest = forge(private)
    index = honest.at("dp")
    for path in fields_of(honest.entries[index]):
        forger = forge(private)
        made: dict[str, Any] = {}

        def change(leaf: Any, name: str = path[-1], made: dict[str, Any] = made) -> None:
            value = leaf["entry"][name]
            leaf["entry"][name] = (0.5).hex() if name in ("rho", "xi") else altered(value)
            made.update(leaf["entry"])

        forger.edit(index, change)
        forger.resubject(index, {"privacy.jsonl": sha256(canonical_json(made))})
        found = faults_of(forger.sign())
        assert any("round 1" in each or "leaf" in each for each in found), (path, found)


def test_a_sum_missing_from_the_ledger_or_told_twice(
    forge: Callable[..., Forger], private: Path
) -> None:
    forger = forge(private)
    del forger.entries[forger.at("dp", 1)]
    found = faults_of(forger.sign())
    assert any("round 2: " in each and "not in the ledger" in each for each in found), found
    forger = forge(private)
    forger.entries.insert(forger.at("dp"), forger.entries[forger.at("dp")])
    assert any("twice" in each for each in faults_of(forger.sign()))


def test_a_plan_with_another_budget_is_another_run(
    forge: Callable[..., Forger], private: Path
) -> None:
    """Every advert and mask is bound to the plan: it cannot be exchanged afterwards."""
    forger = forge(private)
    document = json.loads((forger.run / "plan.json").read_text())
    document["privacy"]["epsilon"] = 30.0
    text = json.dumps(document)
    forger.republish("plan.json", text.encode())
    digest = plan_from_text(text, source="x.json").digest
    forger.edit(0, lambda leaf: leaf.update(plan=digest))
    found = faults_of(forger.sign())
    for number in (1, 2):
        assert any(each.startswith(f"round {number}: the sum of group 0") for each in found), found
