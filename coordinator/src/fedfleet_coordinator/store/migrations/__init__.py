"""The schema's history, applied by the coordinator itself when it starts."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from fedfleet_coordinator.errors import Misconfigured


def upgrade(engine: sa.Engine) -> None:
    """Bring the database's schema to this version's.

    Raises:
        Misconfigured: a newer fedfleet wrote this database; nothing was changed.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in known:
            raise Misconfigured(f"a newer fedfleet wrote this database (schema {current}); update this coordinator")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
