"""A run as the coordinator shows it, in the middle and at its end."""

from typing import Any

RUN = "r-" + "0" * 25 + "1"
AGENTS = [f"a-{number:026d}" for number in range(3)]


def snapshot(**changes: Any) -> dict[str, Any]:
    agents = [
        {"agent": AGENTS[0], "labels": {"site": "a"}, "state": "accepted", "code": "", "text": "", "seconds": 1.25},
        {"agent": AGENTS[1], "labels": {}, "state": "published", "code": "", "text": "", "seconds": 2.0},
        {
            "agent": AGENTS[2], "labels": {}, "state": "declined", "code": "battery",
            "text": "the battery is at 11%, the owner's limit is 20%", "seconds": None,
        },
    ]  # fmt: skip
    exchange = {
        "n": 3, "label": "train", "state": "open", "expected": 3, "settled": 2, "accepted": 1, "reason": "",
        "agents": agents,
    }  # fmt: skip
    metrics = [
        {"round": 0, "kind": "server", "values": {"accuracy": 0.1}},
        {"round": 1, "kind": "train", "values": {"loss": 1.23456}},
        {"round": 1, "kind": "server", "values": {"accuracy": 0.8125}},
    ]
    made: dict[str, Any] = {
        "run": RUN, "app": "fedfleet/digits", "state": "running", "reason": "", "text": "", "attempts": 1,
        "server_round": 1, "num_rounds": 8, "config": {}, "created": 1000.0, "started": 1001.0, "ended": None,
        "exchange": exchange, "metrics": metrics, "model": None,
    }  # fmt: skip
    return made | changes


def timeline() -> dict[str, Any]:
    tasks = []
    for n, label in ((1, "train"), (2, "evaluate"), (3, "train")):
        for place, agent in enumerate(AGENTS):
            published = 1001.0 + n * 2
            settled = published + 0.5 + place * 0.4
            late = n == 3 and place == 1
            state = "missed" if late else "declined" if n == 2 and place == 2 else "accepted"
            tasks.append(
                {"n": n, "label": label, "agent": agent, "labels": {"site": "a"}, "state": state, "code": "",
                 "published": published, "settled": None if late else settled}
            )  # fmt: skip
    return {"run": RUN, "tasks": tasks}
