"""What a plan's learning rates and server optimiser would do to an adapter, as (field, cause, remedy).

Only what hardly any task can want is named. AdamW, and Adam and Yogi at the server, move every number by
about the learning rate at a step, whatever the gradient (arXiv 1412.6980, section 2.1); a step of SGD is at
most the rate times ``local.clip_norm`` long. Weights that are trained are of the order of a hundredth to one.
"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.plan import Plan

Said = tuple[str, str, str]
LEAST_RATE, MOST_RATE = 1e-6, 0.5  # of an optimiser that takes steps of its own size
MOST_STEP = 32.0  # L2 norm of one step, as the usual `secrecy.clip` of a whole update
MOST_GAIN = 20.0  # what a mean update becomes over all later rounds
USUAL = {"adamw": "1e-4 to 1e-2", "sgd": "0.01 to 2", "server": "1e-3 to 1e-1"}


def said_of_steps(plan: Plan) -> Iterator[Said]:
    """What is odd about the sizes of steps, at clients and at the server."""
    local = plan.local
    for field in ("learning_rate", "head_learning_rate"):
        yield from _local(plan, f"local.{field}", getattr(local, field))
    largest = max(local.learning_rate, local.head_learning_rate)
    for field in ("proximal_mu", "l2_sp") if local.optimizer == "sgd" else ():
        if getattr(local, field) * largest > 1:
            cause = f"{field} times the learning rate is above 1: steps will overshoot"
            yield f"local.{field}", cause, "lower it"
    if local.weight_decay * largest >= 1:
        yield (
            "local.weight_decay",
            "weight decay times the learning rate is 1 or more: a step throws away all that was learnt",
            "lower it; 0.01 is usual",
        )
    yield from _server(plan)


def _local(plan: Plan, field: str, rate: float) -> Iterator[Said]:
    optimizer, usual = plan.local.optimizer, f"{USUAL[plan.local.optimizer]} is usual"
    step = rate * plan.local.clip_norm
    if optimizer == "adamw" and rate > MOST_RATE:
        yield field, f"{optimizer} moves every number by about {rate:g} at each step", usual
    if optimizer == "sgd" and step > MOST_STEP:
        yield field, f"one step may move the adapter by {step:g} (L2 norm)", usual
    if (rate if optimizer == "adamw" else step) < LEAST_RATE:
        yield field, f"steps of {rate:g} change next to nothing", usual


def _server(plan: Plan) -> Iterator[Said]:
    server, field = plan.server, "server.learning_rate"
    adaptive = server.optimizer in ("fedadam", "fedyogi")
    if adaptive:
        if server.learning_rate > MOST_RATE:
            cause = f"{server.optimizer} moves every number by about {server.learning_rate:g} at each round"
            yield field, cause, f"{USUAL['server']} is usual"
        if 1.0 in (server.beta1, server.beta2):
            name = "beta1" if server.beta1 == 1 else "beta2"
            yield f"server.{name}", "with 1 no update is ever taken in", "0.9 and 0.99 are usual"
        return
    momentum = server.beta1 if server.optimizer == "fedavgm" else 0.0
    rounds = plan.rounds
    kept = rounds if momentum == 1 else (1 - momentum**rounds) / (1 - momentum)
    if (gain := server.learning_rate * kept) > MOST_GAIN:
        cause = f"a round's mean update is applied {gain:.3g} times over in the course of the run"
        yield (
            field,
            cause,
            "lower server.learning_rate or beta1; 1.0 with fedavg is the mean itself",
        )
    if server.learning_rate < LEAST_RATE:
        cause = f"{server.learning_rate:g} of a mean update changes next to nothing"
        yield field, cause, "1.0 with fedavg is the mean itself"
