"""How Alembic reaches the database: over the connection it is handed."""

from alembic import context

from fedfleet_coordinator.store.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
