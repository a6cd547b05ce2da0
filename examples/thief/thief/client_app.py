"""The half that runs on each device: goes for the agent's key, journal and memory, the network, and other apps."""

import os
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from thief import attempts

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Try everything, and say which attempts worked."""
    made = Path.cwd().parent
    handed, home = made.parent, made.parents[2]
    agent = _agent(home)
    found = attempts.tried(
        {
            **attempts.on_files(
                {
                    "key": home / "identity.pem",
                    "journal": home / "journal.sqlite",
                    "configuration": home / "agent.toml",
                    "other_tasks": home / "blobs",
                    "other_apps": home / "handover",
                }
            ),
            **attempts.on_process(agent),
            **{f"keeper_{name}": attempt for name, attempt in attempts.on_process(os.getppid()).items()},
            **attempts.on_kernel(),
            "order": lambda: next(handed.glob("message-*")).open("r+b").close(),
            "handed": lambda: (handed / "reply-1").open("wb").close(),
        }
    )
    metrics: dict[str, int | float | list[int] | list[float]] = {name: int(worked) for name, worked in found.items()}
    attempts.leave_a_daemon()
    metrics["children"] = attempts.multiply(int(context.run_config["children"]))
    return Message(RecordDict({"found": MetricRecord(metrics)}), reply_to=message)


def _agent(home: Path) -> int:
    """Return the agent's process id if it can be found out, else the parent's."""
    with suppress(OSError, ValueError):
        return int((home / "lock").read_text(encoding="ascii"))
    return os.getppid()
