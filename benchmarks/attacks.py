"""What clients that break the rules do to the demo's accuracy, with the checks and without them.

    python benchmarks/attacks.py [--rounds 4] [--only a,b] [--json]

The demo's experiment (20 devices, real training, `secagg`) in this process. Attackers are the first devices by
name. `flip`: the honest update turned round and stretched to the clip, which nobody can see. `beyond`: words of a
vector 40 clips long, in the last round. `below`: 16 clips long, so that the mean stays just below the
bound of P-6.17. `unchecked` is `beyond` against a coordinator without that bound. One line per case:
accuracy after the last round, rounds that were void.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import client.secret
from client.secret import Member
from protocol.exchange import Contribution
from protocol.secagg.primitives import Word
from protocol.secagg.ring import Ring
from protocol.secagg.task import Encoding, Exact
from protocol.wire import Instruction
from simulations.evaluation import Evaluator, load_evaluations
from simulations.experiment import experiment_path, load_experiment
from simulations.prepare import prepare
from simulations.progress import NoProgress
from simulations.records import round_records
from simulations.run import run_federated
from simulations.timings import Timings

Attack = Callable[[Encoding, Instruction, Contribution], Word | Contribution]


@dataclass(frozen=True, kw_only=True)
class Case:
    """``attackers`` of twenty do ``attack``; one sum, or one for each of ``groups``."""

    attack: str = "none"
    attackers: int = 0
    groups: int = 1
    checked: bool = True


CASES = {
    "honest": Case(),
    "flip-1": Case(attack="flip", attackers=1),
    "flip-4": Case(attack="flip", attackers=4),
    "beyond-1-unchecked": Case(attack="beyond", attackers=1, checked=False),
    "beyond-1": Case(attack="beyond", attackers=1),
    "below-1": Case(attack="below", attackers=1),
    "honest-groups": Case(groups=5),
    "flip-1-groups": Case(attack="flip", attackers=1, groups=5),
    "flip-4-groups": Case(attack="flip", attackers=4, groups=5),
    "beyond-1-groups": Case(attack="beyond", attackers=1, groups=5),
    "below-1-groups": Case(attack="below", attackers=1, groups=5),
}


def flipped(given: Contribution, length: float) -> Contribution:
    """The update turned round, ``length`` long."""
    norm = float(np.linalg.norm(given.update.astype(np.float64)))
    return replace(given, update=(given.update * (-length / norm)).astype(np.float32))


def stretched(encoding: Encoding, given: Contribution, clips: float) -> Word:
    """Words of a vector as many clips long, which the encoding would have cut."""
    assert isinstance(encoding, Exact)
    ring = encoding.ring
    words = ring.encode(given.update, [0] * ring.counters, np.random.default_rng(0))
    turned = ring.turn.forward(flipped(given, clips * ring.clip).update.astype(np.float64))
    level = np.rint((turned + ring.reach) * (ring.levels / (2 * ring.reach))).astype(np.int64)
    words[: ring.padded] = (level % 2**ring.bits).astype(words.dtype)
    return words


def attacking(case: Case, rounds: int) -> type[Member]:
    """Members of which the first ones attack."""
    names = {f"client-{number:04d}" for number in range(case.attackers)}

    @dataclass(frozen=True, kw_only=True)
    class Attacker(Member):
        def _words(
            self,
            encoding: Encoding,
            instruction: Instruction,
            contribute: Callable[[], Contribution],
        ) -> Word:
            if self.name not in names:
                return super()._words(encoding, instruction, contribute)
            if case.attack == "flip":
                clip = self.plan.secrecy.clip
                return super()._words(encoding, instruction, lambda: flipped(contribute(), clip))
            if case.attack == "beyond" and instruction.round < rounds:
                return super()._words(encoding, instruction, contribute)
            clips = 40.0 if case.attack == "beyond" else 16.0 * encoding_share(self)
            return stretched(encoding, contribute(), clips)

    return Attacker


def encoding_share(member: Member) -> float:
    """How much smaller the attacker's sum is than the whole cohort's."""
    return member.plan.largest_sum / member.plan.cohort.size


@contextmanager
def replaced(target: Any, name: str, value: Any) -> Iterator[None]:
    """``target.name`` is ``value`` within."""
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


def outcome(case: Case, rounds: int, extra: list[str], folder: Path) -> dict[str, Any]:
    """Accuracy after every round, void rounds, groups that were refused or left out."""
    settings = [
        f"plan.rounds={rounds}",
        f"plan.secrecy.groups={case.groups}",
        "yardsticks.pooled=false",
        "yardsticks.alone=0",
        *extra,
    ]
    experiment = load_experiment(experiment_path("demo"), settings)
    prepared = prepare(experiment, folder, resume=False, progress=NoProgress())
    evaluator = Evaluator(prepared.plan, prepared.base, prepared.test_file)
    check = Ring.verify_sum if case.checked else lambda *_: None
    with (
        replaced(client.secret, "Member", attacking(case, rounds)),
        replaced(Ring, "verify_sum", check),
    ):
        run_federated(prepared, evaluator, timings=Timings(folder), progress=NoProgress())
    records = round_records(folder)
    groups = [group for record in records for group in record["groups"]]
    return {
        "accuracy": [each["accuracy"] for each in load_evaluations(folder)],
        "norms": [round(record["update_norm"], 2) for record in records],
        "void": sum(bool(record["void"]) for record in records),
        "refused": sum(len(record["refused"]) for record in records),
        "left_out": sum(bool(group["used"]) and not group["kept"] for group in groups),
        "clipped": [record["metrics"].get("clipped") for record in records],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument(
        "--set", action="append", default=[], help="of the experiment, as in simulate"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(CASES[name], arguments.rounds, arguments.set, Path(folder) / "run")
        if arguments.json:
            print(json.dumps({"case": name, **found}), flush=True)
        else:
            print(
                f"{name:20} accuracy {found['accuracy'][-1]:.3f}, void {found['void']}, refused "
                f"{found['refused']}, groups left out {found['left_out']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
