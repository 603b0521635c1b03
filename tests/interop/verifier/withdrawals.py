"""P-8.18: a client's request of withdrawal, its effect, and that nobody asked the client afterwards."""

from __future__ import annotations

from typing import Any

from .basics import canonical, check_signature, sha256
from .documents import Documents, Roster
from .log import Leaf


def check_withdrawal(
    documents: Documents, origin: str, rosters: list[Roster], leaves: list[Leaf], leaf: Leaf
) -> None:
    """A `withdrawal` among ``leaves``; ``rosters`` are those before it."""
    request = leaf["request"]
    assert sorted(request) == ["client", "origin", "sid", "signature"]
    assert (request["origin"], request["sid"]) == (origin, documents.sid.hex())
    client = request["client"]
    keys = [roster.keys.get(bytes.fromhex(client)) for roster in rosters]
    (key,) = {key for key in keys if key}
    body = canonical({name: request[name] for name in ("client", "origin", "sid")})
    check_signature(key, "withdrawal", body, bytes.fromhex(request["signature"]))
    effect = lineage(leaves[: leaf.index], client)
    assert leaf.about == {"lineage": sha256(canonical(effect))}
    rounds = [held["round"] for held in effect["sums"]]
    assert leaf.fields == {
        "request": request,
        "first": rounds[0] if rounds else None,
        "rounds": len(set(rounds)),
        "asked": len(effect["asked"]),
        "adapters": len(effect["adapters"]),
        "releases": len(effect["releases"]),
        "before": effect["before"],
    }
    for later in leaves[leaf.index + 1 :]:
        assert client not in taking_part(later)
        assert later.kind != "withdrawal" or later["request"]["client"] != client


def lineage(leaves: list[Leaf], client: str) -> dict[str, Any]:
    """What the updates of a client are in, by the first leaves of a log."""
    alive = {leaf["rid"]: leaf["clients"] for leaf in leaves if leaf.kind == "alive"}
    adapters = [leaf for leaf in leaves if leaf.kind == "adapter"]
    sums = [
        {"group": one["group"], "rid": one["rid"], "round": leaf["round"], "seq": leaf["seq"]}
        for leaf in adapters
        for one in leaf["sums"]
        if client in alive[one["rid"]]
    ]
    asked = [
        {"group": one["group"], "rid": one["rid"], "round": leaf["round"], "seq": leaf["seq"]}
        for leaf in leaves
        if leaf.kind == "abort"
        for one in leaf["revealed"]
        if client in one["clients"]
    ]
    told = [{"adapter": leaf["adapter_out"], "round": leaf["round"]} for leaf in adapters]
    first = sums[0]["round"] if sums else len(told)
    name = "rounds/{:04d}/adapter/release.json"
    return {
        "clients": [client],
        "sums": sums,
        "asked": asked,
        "adapters": told[first:],
        "releases": [
            {
                "leaf": leaf.index,
                "release": leaf.about[name.format(leaf["round"])],
                "round": leaf["round"],
            }
            for leaf in leaves
            if leaf.kind == "release" and leaf["round"] >= first
        ],
        "before": told[first - 1],
    }


def taking_part(leaf: Leaf) -> list[str]:
    """The clients that a leaf says were asked, or are in a sum."""
    if leaf.kind == "advert":
        return [leaf["advert"][80:112]]  # behind sid and seq (P-6.5)
    if leaf.kind in ("shares", "vector"):
        return [leaf["client"]]
    if leaf.kind == "alive":
        return list(leaf["clients"])
    if leaf.kind == "abort":
        return [client for one in leaf["revealed"] for client in one["clients"]]
    return []
