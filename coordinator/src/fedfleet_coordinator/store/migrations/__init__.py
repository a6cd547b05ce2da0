"""The schema's history, applied by the coordinator itself when it starts."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from fedfleet_coordinator.errors import Misconfigured


def upgrade(connection: sa.Connection, name: str) -> None:
    """Bring the database's schema to this version's, within the connection's transaction.

    Args:
        name: of the database, for people.

    Raises:
        Misconfigured: a newer fedfleet wrote this database; nothing was changed.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise Misconfigured(
            f"the database {name} has schema {current}, this version of fedfleet knows schemas up to {max(known)}: a "
            "newer version wrote it; install that version, or restore the backup that was made before the upgrade"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
