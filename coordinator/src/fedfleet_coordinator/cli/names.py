"""Ids as people type them: how they begin is enough, as long as only one begins like that."""

from fedfleet_coordinator.cli.client import Client
from fedfleet_coordinator.cli.errors import BadInput

_WHOLE = 28


def full_name(client: Client, text: str) -> str:
    """Return the id of the only run or agent whose id begins with `text`.

    Raises:
        BadInput: none does, or several do. Unreachable, Refusal: see `Client.get`.
    """
    text = text.strip()
    kind, path, listing = (
        ("agent", "/v1/agents", "fedfleet agents") if text.startswith("a-") else ("run", "/v1/runs", "fedfleet runs")
    )
    if not text.startswith(("a-", "r-")):
        raise BadInput(
            f"{text[:40]!r} is no id: a run's begins with r-, an agent's with a-; "
            "fedfleet runs and fedfleet agents list them"
        )
    if len(text) >= _WHOLE:
        return text
    answer = client.get(path)
    rows = answer.get(f"{kind}s", []) if isinstance(answer, dict) else answer
    found = [str(row[kind]) for row in rows if str(row[kind]).startswith(text)]
    if not found:
        raise BadInput(f"there is no {kind} whose id begins with {text}; {listing} lists them")
    if len(found) > 1:
        raise BadInput(f"{len(found)} {kind}s begin with {text}: {', '.join(sorted(found)[:3])}; type more of it")
    return found[0]
