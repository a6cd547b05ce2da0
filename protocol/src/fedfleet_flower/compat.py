"""The one place that touches what flwr does not promise to keep. Written for flwr 1.42.

Four things: `TaskIdentity`, without which no app can create a message; `Message(metadata=)`, by which a message gets
the ids its runtime gave it; `Run`, which some ServerApps look at; and `build_fab_from_disk`, so that a bundle is what
`flwr build` would have made. The numbers of `ErrorCode` are written down here because they travel.
"""

import time
from pathlib import Path
from typing import TypeAlias

from flwr.app import DEFAULT_TTL, Error, Message, Metadata, RecordDict, UserConfig
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedfleet_flower.errors import BadBundle

FlowerRun: TypeAlias = Run
"""What a Grid is told of its run; for signatures elsewhere."""

SERVER_NODE = 1
"""The node id of the ServerApp, in every Flower run."""

LOAD_CLIENT_APP_EXCEPTION = 1
CLIENT_APP_RAISED_EXCEPTION = 2
MESSAGE_UNAVAILABLE = 3
REPLY_MESSAGE_UNAVAILABLE = 4
NODE_UNAVAILABLE = 5
MOD_FAILED_PRECONDITION = 6
INVALID_FAB = 7
CLIENT_APP_CRASHED = 8


def identify(*, run: int, node: int, task: int = 0) -> None:
    """Tell flwr who this process is; messages created from now on carry it."""
    TaskIdentity.run_id = run
    TaskIdentity.node_id = node
    TaskIdentity.task_id = task


def instruction(
    content: RecordDict,
    *,
    run: int,
    node: int,
    message_id: str,
    message_type: str,
    group_id: str = "",
    ttl: float = DEFAULT_TTL,
) -> Message:
    """Return the message a ClientApp on `node` is called with."""
    metadata = Metadata(
        run_id=run,
        message_id=message_id,
        src_node_id=SERVER_NODE,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=group_id,
        created_at=time.time(),
        ttl=ttl,
        message_type=message_type,
    )
    return _message(content, metadata)


def reply(
    content: RecordDict | Error,
    *,
    run: int,
    node: int,
    message_id: str,
    reply_to: str,
    message_type: str,
    group_id: str = "",
    ttl: float = DEFAULT_TTL,
) -> Message:
    """Return the message a ServerApp gets from `node`: the true sender, whatever the app or a mod put in."""
    metadata = Metadata(
        run_id=run,
        message_id=message_id,
        src_node_id=node,
        dst_node_id=SERVER_NODE,
        reply_to_message_id=reply_to,
        group_id=group_id,
        created_at=time.time(),
        ttl=ttl,
        message_type=message_type,
    )
    return _message(content, metadata)


def name_message(message: Message, message_id: str) -> None:
    """Give a message that the app created the id its runtime chose."""
    message.metadata.__dict__["_message_id"] = message_id


def run_details(*, run: int, app: str, version: str, digest: str, overrides: UserConfig) -> Run:
    """Return what `Grid.run` shows of a run."""
    details = Run.create_empty(run)
    details.fab_id, details.fab_version, details.fab_hash = app, version, digest
    details.override_config = overrides
    return details


def build_bundle(app: Path) -> bytes:
    """Return the bundle of the app in folder `app`, as `flwr build` makes it: the same files give the same bytes.

    Raises:
        BadBundle: the folder is not a Flower app; the text says what is missing.
    """
    if not (app / "pyproject.toml").is_file():
        raise BadBundle(f"{app} is not a Flower app: it has no pyproject.toml")
    try:
        from flwr.cli.build import build_fab_from_disk  # with fastapi and httpx: half a second, for one caller of many

        return build_fab_from_disk(app)
    except Exception as error:  # flwr raises ValueError, click's errors and, for a strange TOML, whatever it trips over
        raise BadBundle(f"{app} cannot be bundled: {error}") from error


def _message(content: RecordDict | Error, metadata: Metadata) -> Message:
    return Message(content, metadata=metadata)  # type: ignore[call-overload,no-any-return]
