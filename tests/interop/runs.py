"""The kinds of runs that the independent verifier is tried on, made by the project's own coordinator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from protocol.exchange import Phase
from protocol.methods import METHODS
from server.log import SECRET
from server.rounds import deal_groups
from simulations.clients import client_name
from simulations.faults import Speeds
from tests.interop.released import release
from tests.methods import CORES, adapter_of
from tests.unit.audit.conftest import EIGHT, some_are_lost
from tests.unit.audit.runs import Sites, go_on, make_run, small_plan
from tests.unit.audit.withdrawing import stopped_after, withdraw
from tests.witnesses import LOG, named_key, witnessing

LOSSY: dict[str, Any] = {"count": 8, "cohort": EIGHT, "lost": some_are_lost}
NOISE = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0}
PROMPT: dict[str, Any] = {
    "adapter": {"method": "prompt", "tokens": 3},
}
NAMES: dict[str, Any] = {"rows": ["AQIDBAU=", "//79/Ps=", "gIB/f38="], "scale": 0.3}
DIRECTIONS: dict[str, Any] = {"rows": ["AQIDBAU=", "//79/Ps="], "scale": 0.1, "turns": 1}
GROUPS: dict[str, Any] = {
    "count": 15,
    "cohort": EIGHT | {"size": 15, "quorum": 9},
    "secrecy": {"groups": 3},
}


WITNESSES = ("w1.example", "w2.example")
LARGE: dict[str, Any] = {"count": 136, "cohort": EIGHT | {"size": 136, "quorum": 110}}


def some_of_many_are_lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
    """A few in each phase of round 1."""
    phases = (Phase.ADVERTISE, Phase.SHARE, Phase.MASK, Phase.AGREE, Phase.UNMASK)
    return number == 1 and site in (10, 11, 40, 41, 90) and phase is phases[site % 5]


def many_are_lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
    """Too many to open the sum that was asked for in round 1."""
    return number == 1 and phase is Phase.UNMASK and site % 2 == 0


def two_are_lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
    """In round 1 two sites before they mask, whichever groups they are in."""
    return phase is Phase.MASK and (number, site) in {(1, 2), (1, 7)}


def a_group_fails(number: int, attempt: int, phase: Phase, site: int) -> bool:
    """In round 1 all of group 1 before they mask, in round 2 most of group 0 before they reveal."""
    names = sorted(f"site-{each}" for each in range(15))
    dealt = deal_groups(names, groups=3, seed=5, round_number=number, attempt=attempt)
    gone = {1: (Phase.MASK, dealt[1]), 2: (Phase.UNMASK, dealt[0][1:])}[number]
    return (phase, f"site-{site}" in gone[1]) == (gone[0], True)


def an_attempt_fails(number: int, attempt: int, phase: Phase, site: int) -> bool:
    """Round 2 needs two attempts, round 3 is void."""
    first = (number, attempt, phase) == (2, 1, Phase.MASK) and site < 6
    return first or (number == 3 and phase is Phase.UNMASK and site < 6)


OVER_SELECTED = "more than are waited for"
TWELVE: dict[str, Any] = {
    "count": 12,
    "cohort": EIGHT | {"size": 9, "quorum": 8, "spare": 3},
    "speeds": Speeds(training_s=1.0, slowness=10.0, slow=frozenset(map(client_name, (3, 4, 9)))),
}
KINDS: dict[str, dict[str, Any]] = {
    "alternating with losses": LOSSY | {"rounds": 3, "rule": {"name": "alternating"}},
    "chacha20, 20 bits, fedyogi": LOSSY
    | {
        "secrecy": {"bits": 20, "suite": "chacha20"},
        "server": {"optimizer": "fedyogi", "learning_rate": 0.1},
        "rounds": 3,
    },
    "24 bits, fedadam": LOSSY
    | {"secrecy": {"bits": 24}, "server": {"optimizer": "fedadam", "learning_rate": 0.1}},
    "32 bits, fedavgm": LOSSY
    | {
        "secrecy": {"bits": 32, "suite": "chacha20"},
        "server": {"optimizer": "fedavgm", "learning_rate": 0.5},
        "rule": {"name": "mean"},
    },
    "hybrid keys with losses": LOSSY | {"secrecy": {"keys": "x25519+ml-kem-768"}},
    "hybrid keys, chacha20, 20 bits": LOSSY
    | {"secrecy": {"keys": "x25519+ml-kem-768", "suite": "chacha20", "bits": 20}},
    "a large cohort with losses": LARGE | {"lost": some_of_many_are_lost, "rounds": 2},
    "a large cohort, hybrid keys": LARGE
    | {
        "lost": some_of_many_are_lost,
        "secrecy": {"keys": "x25519+ml-kem-768"},
        "rounds": 1,
    },
    "a large cohort and a void round": LARGE | {"lost": many_are_lost, "rounds": 2},
    "a large cohort under witnesses": LARGE
    | {"lost": some_of_many_are_lost, "rounds": 2, "near": WITNESSES},
    "groups under witnesses, one without a sum": GROUPS
    | {"lost": a_group_fails, "near": WITNESSES},
    "failed attempts under witnesses": LOSSY
    | {"rounds": 4, "lost": an_attempt_fails, "near": WITNESSES},
    "hybrid keys under witnesses": LOSSY
    | {"rounds": 1, "secrecy": {"keys": "x25519+ml-kem-768"}, "near": WITNESSES},
    OVER_SELECTED: TWELVE | {"rounds": 3},
    "more than are waited for, in groups": TWELVE
    | {
        "count": 15,
        "cohort": EIGHT | {"size": 12, "quorum": 9, "spare": 3},
        "secrecy": {"groups": 3, "keys": "x25519+ml-kem-768"},
    },
    "more than are waited for, and noise": TWELVE | {"privacy": NOISE, "rule": {"name": "first"}},
    "late updates": TWELVE
    | {
        "rounds": 5,
        "rule": {"name": "mean"},
        "cohort": TWELVE["cohort"] | {"late_rounds": 3, "late_decay": 1.0},
        "speeds": replace(TWELVE["speeds"], slowness=2.5),
    },
    "groups with losses": GROUPS | {"lost": two_are_lost},
    "groups, hybrid, 24 bits": GROUPS
    | {
        "lost": two_are_lost,
        "secrecy": {"groups": 3, "keys": "x25519+ml-kem-768", "bits": 24},
        "rounds": 1,
    },
    "trimmed groups with losses": GROUPS
    | {
        "lost": two_are_lost,
        "secrecy": {"groups": 3, "combination": "trimmed-mean"},
        "server": {"learning_rate": 0.7},
        "rounds": 1,
    },
    "a failed attempt and a void round": LOSSY | {"rounds": 4, "lost": an_attempt_fails},
    "noise": LOSSY | {"rounds": 1, "rule": {"name": "first"}, "privacy": NOISE},
    "hardly any noise": LOSSY
    | {
        "rounds": 1,
        "rule": {"name": "first"},
        "privacy": NOISE | {"noise_multiplier": 0.05, "epsilon": 1e5},
    },
    "noise in wide words": LOSSY
    | {
        "rule": {"name": "first"},
        "privacy": NOISE | {"noise_multiplier": 100.0},
        "secrecy": {"suite": "chacha20"},
    },
    "noise in groups of cores": GROUPS
    | {
        "adapter": CORES,
        "privacy": NOISE | {"allow_groups": True},
        "lost": two_are_lost,
    },
    "a cluster": {"count": 7, "cohort": EIGHT | {"clients": [f"site-{n}" for n in (1, 3, 4, 6)]}},
    "cores": {"adapter": CORES},
    "cores of several heads": LOSSY
    | {"rounds": 2, "adapter": {"method": "ravan", "rank": 2, "heads": 2, "targets": ["query"]}},
    "half of it is published": LOSSY | {"rounds": 2, "release": {"keep": 0.5}},
    "a tenth of a hybrid is published": LOSSY
    | {
        "rounds": 1,
        "release": {"keep": 0.1},
        "adapter": {"method": "hybrid", "members": [CORES, {"method": "prompt", "tokens": 3}]},
    },
    "a named program": {"rounds": 1, "base": {"program": "5" * 64}},
    "prompt": PROMPT | LOSSY,
    "an elementwise product": LOSSY
    | {
        "rounds": 4,
        "adapter": {"method": "loha", "rank": 2, "alpha": 4.0, "targets": "query-value"},
    },
    "a product of Kronecker's": LOSSY
    | {"rounds": 4, "adapter": {"method": "lokr", "rank": 1, "alpha": 2.0, "targets": ["query"]}},
    "vectors on fixed factors": LOSSY
    | {"rounds": 2, "adapter": {"method": "vera", "rank": 3, "alpha": 6.0, "targets": ["query"]}},
    "lengths of rows": LOSSY
    | {"rounds": 2, "adapter": {"method": "dora", "rank": 3, "targets": ["query"]}},
    "ranks that answer alone": LOSSY
    | {"rounds": 2, "adapter": {"method": "dylora", "rank": 3, "targets": ["query"]}},
    "rows that are found": LOSSY
    | {"rounds": 3, "adapter": {"method": "sparse", "rank": 2, "targets": "all-linear"}},
    "ranks that are found": LOSSY
    | {
        "rounds": 4,
        "rule": {"name": "mean"},
        "adapter": {"method": "adalora", "rank": 3, "target_rank": 1, "targets": "all-linear"},
    },
    "a head of names": LOSSY | {"rounds": 1, "head": NAMES},
    "a head that stays": LOSSY
    | {"rounds": 2, "head": NAMES | {"trained": False}, "adapter": CORES},
    "a head of two directions": LOSSY
    | {
        "rounds": 2,
        "head": {"rows": ["AQI=", "//4=", "gH8="], "scale": 0.3, "directions": DIRECTIONS},
        "adapter": CORES,
    },
    "a head of three directions by turns": LOSSY
    | {
        "rounds": 3,
        "head": {
            "rows": ["AQIC", "//4D", "gH8D"],
            "scale": 0.3,
            "directions": {
                "rows": [*DIRECTIONS["rows"], "AgIDBAU="],
                "scale": 0.1,
                "turns": 2,
            },
        },
    },
    "some layers": LOSSY
    | {"rounds": 1, "adapter": {"rank": 2, "alpha": 4.0, "targets": "all-linear", "layers": [1]}},
    "factors of features": LOSSY
    | {"rounds": 1, "adapter": {"method": "ia3", "targets": ["query"]}},
    "biases": LOSSY | {"rounds": 1, "adapter": {"method": "bias"}},
    "norms": LOSSY | {"rounds": 2, "adapter": {"method": "norm"}},
    "bottlenecks": LOSSY
    | {
        "rounds": 2,
        "adapter": {"method": "bottleneck", "places": "houlsby", "width": 3, "scaling": 0.3},
    },
    "bottlenecks beside, with gates": LOSSY
    | {
        "rounds": 3,
        "adapter": {"method": "bottleneck", "places": "parallel", "width": 2, "gated": True},
    },
    "a bottleneck of words": LOSSY
    | {"rounds": 2, "adapter": {"method": "bottleneck", "places": "embeddings", "width": 2}},
    "bottlenecks of one turn": LOSSY
    | {
        "rounds": 1,
        "rule": {"name": "first"},
        "adapter": {"method": "bottleneck", "width": 2},
    },
    "a hybrid of cores and a prompt": LOSSY
    | {
        "rounds": 2,
        "adapter": {"method": "hybrid", "members": [CORES, {"method": "prompt", "tokens": 3}]},
    },
    "a hybrid of three, by turns": LOSSY
    | {
        "rounds": 3,
        "adapter": {
            "method": "hybrid",
            "members": [
                {"method": "adalora", "rank": 3, "target_rank": 1, "targets": ["query"]},
                {"method": "norm"},
                {"method": "bias"},
            ],
        },
    },
    "the head alone": LOSSY | {"rounds": 1, "adapter": {"method": "head"}},
    "rank stabilised": LOSSY
    | {
        "rounds": 1,
        "adapter": {"rank": 2, "alpha": 4.0, "targets": ["query"], "rank_stabilised": True},
    },
    "numbers": LOSSY
    | {
        "task": {"kind": "regression", "low": 0.0, "high": 5.0, "text_pair": "other"},
        "evaluation": {"holdout": 0.2},
    },
    "images": LOSSY
    | {
        "task": {"kind": "image-classification", "labels": ["a", "b", "c"]},
        "evaluation": {"holdout": 0.2},
    },
    "sounds": LOSSY
    | {
        "task": {"kind": "audio-classification", "labels": ["a", "b", "c"]},
        "evaluation": {"holdout": 0.2},
    },
    "samples of sounds": LOSSY
    | {
        "samples": True,
        "task": {"kind": "audio-classification", "labels": ["a", "b", "c"]},
        "evaluation": {"holdout": 0.2},
    },
    "documents": LOSSY
    | {
        "task": {"kind": "document-classification", "labels": ["a", "b", "c"]},
        "evaluation": {"holdout": 0.2},
    },
    "drawings": LOSSY
    | {
        "task": {"kind": "image-generation", "labels": ["a", "b", "c"]},
        "evaluation": {"holdout": 0.2},
    },
    "images, norms": LOSSY
    | {
        "rounds": 1,
        "task": {"kind": "image-classification", "labels": ["a", "b", "c"]},
        "adapter": {"method": "norm"},
    },
    "texts": LOSSY
    | {
        "task": {"kind": "causal-lm", "max_length": 100},
        "evaluation": {"holdout": 0.2},
    },
    "texts behind a prefix": LOSSY
    | {
        "rounds": 1,
        "task": {"kind": "causal-lm", "max_length": 100},
        "adapter": {"method": "prefix", "tokens": 3, "encoder": "mlp", "encoder_width": 4},
    },
    "what texts become": LOSSY
    | {
        "rounds": 1,
        "task": {"kind": "seq2seq-lm", "max_length": 100},
        "evaluation": {"holdout": 0.2},
    },
    "many blocks": {
        "linears": 5500,
        "count": 3,
        "cohort": {"size": 3, "quorum": 3, "deadline_s": 30.0},
        "rounds": 1,
        "secrecy": {"bits": 20},
    },
}

_TRIED = {kind.get("adapter", {}).get("method") for kind in KINDS.values()}
KINDS |= {  # a method that no kind above is about, with what it is tried with
    f"method {name}": LOSSY
    | {"rounds": len(method.turns), "adapter": adapter_of(name, rank=2, targets=["query"])}
    for name, method in METHODS.items()
    if name not in _TRIED | {"lora"}
}

FOUR: dict[str, Any] = {"cohort": {"size": 4, "quorum": 3, "deadline_s": 30.0}, "count": 4}
CONTINUED: dict[str, dict[str, Any]] = {  # runs that go on from one of a round alike
    "goes on": FOUR | {"rounds": 2},
    "goes on in rows that were found": FOUR
    | {"adapter": {"method": "sparse", "rank": 2, "targets": "all-linear"}, "rounds": 2},
    "goes on with noise in cores": FOUR | {"adapter": CORES, "privacy": NOISE, "rounds": 1},
}


def made(kind: str, folder: Path) -> Path:
    """A run of a kind, its last round released, or that before a withdrawal."""
    if kind == WITHDRAWN:
        return withdrawn(folder)
    if kind in CONTINUED:
        before = make_run(folder.parent / "before", **(CONTINUED[kind] | {"rounds": 1}))
        run = go_on(before, folder, **CONTINUED[kind])
    else:
        settings = dict(KINDS[kind])
        if names := settings.pop("near", ()):
            settings |= witnessing(*names)
        run = make_run(folder, **settings)
        if names:  # where the log of a run without witnesses has its key
            (run / SECRET).write_text(named_key(LOG).private_bytes_raw().hex())
            release(run, settings["witnesses"])
            return run
    release(run)
    return run


WITHDRAWN = "a site withdraws"


def withdrawn(folder: Path) -> Path:
    """Two rounds, the second released; a site of it and one of neither withdraw; then one more."""
    small: dict[str, Any] = {"cohort": {"size": 3, "quorum": 3, "deadline_s": 30.0}, "rounds": 3}
    plan, manifest = small_plan(**small)
    sites = Sites(plan, manifest, folder.parent / "sites", 8)
    stopped_after(2, folder, sites=sites, count=8, **small)
    release(folder)
    record = folder / "rounds/{:04d}/record.json"
    used = [set(json.loads(Path(str(record).format(n)).read_text())["used"]) for n in (1, 2)]
    never = {f"site-{site}" for site in range(8)} - used[0] - used[1]
    for name in (min(used[1] - used[0]), min(never)):
        withdraw(folder, sites.keys[int(name.removeprefix("site-"))])
    return make_run(folder, sites=sites, count=8, **small)
