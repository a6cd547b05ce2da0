"""The first schema: one table per row."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "agent",
        sa.Column("agent", _TEXT, autoincrement=False, nullable=False),
        sa.Column("public_key", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("previous_key", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("serial", _TEXT, autoincrement=False, nullable=False),
        sa.Column("serials", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("not_after_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("labels", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("self_labels", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("state", _TEXT, autoincrement=False, nullable=False),
        sa.Column("online", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("seen_at", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("seen_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("eligible", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("code", _TEXT, autoincrement=False, nullable=False),
        sa.Column("text", _TEXT, autoincrement=False, nullable=False),
        sa.Column("version", _TEXT, autoincrement=False, nullable=False),
        sa.Column("token", _TEXT, autoincrement=False, nullable=False),
        sa.Column("enrolled_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("agent"),
    )
    op.create_index("ix_agent_state", "agent", ["state"])
    op.create_index("ix_agent_token", "agent", ["token"])
    op.create_table(
        "blob",
        sa.Column("digest", _TEXT, autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("file", _TEXT, autoincrement=False, nullable=False),
        sa.Column("inline", sa.LargeBinary(), autoincrement=False, nullable=True),
        sa.Column("stored_at", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("blocks", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("ix_blob_stored_at", "blob", ["stored_at"])
    op.create_table(
        "exchange",
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", _TEXT, autoincrement=False, nullable=False),
        sa.Column("request", _TEXT, autoincrement=False, nullable=False),
        sa.Column("label", _TEXT, autoincrement=False, nullable=False),
        sa.Column("deadline_at", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("quorum", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("grace_s", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("grace_at", sa.Double(), autoincrement=False, nullable=True),
        sa.Column("late", _TEXT, autoincrement=False, nullable=False),
        sa.Column("expected", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("settled", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("accepted", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reason", _TEXT, autoincrement=False, nullable=False),
        sa.Column("opened_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("closed_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("run", "n"),
    )
    op.create_index("ix_exchange_run_state", "exchange", ["run", "state"])
    op.create_index("ix_exchange_state", "exchange", ["state"])
    op.create_table(
        "gridanswer",
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("k", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", _TEXT, autoincrement=False, nullable=False),
        sa.Column("value", sa.LargeBinary(), autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("run", "k"),
    )
    op.create_table(
        "logline",
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source", _TEXT, autoincrement=False, nullable=False),
        sa.Column("line", _TEXT, autoincrement=False, nullable=False),
        sa.Column("at_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run", "seq"),
    )
    op.create_table(
        "managed",
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("owner", _TEXT, autoincrement=False, nullable=False),
        sa.Column("max_attempts", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("noted", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("failures", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("suspended", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("active_s", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("active_since", sa.Double(), autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("run"),
    )
    op.create_table(
        "metrics",
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("server_round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", _TEXT, autoincrement=False, nullable=False),
        sa.Column("values", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run", "server_round", "kind"),
    )
    op.create_table(
        "position",
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("next_n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("next_answer", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("keep_below", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("server_round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("blobs", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run"),
    )
    op.create_table(
        "ref",
        sa.Column("digest", _TEXT, autoincrement=False, nullable=False),
        sa.Column("holder", _TEXT, autoincrement=False, nullable=False),
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("digest", "holder"),
    )
    op.create_index("ix_ref_holder", "ref", ["holder"])
    op.create_index("ix_ref_run_n", "ref", ["run", "n"])
    op.create_table(
        "run",
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("state", _TEXT, autoincrement=False, nullable=False),
        sa.Column("app", _TEXT, autoincrement=False, nullable=False),
        sa.Column("bundle", _TEXT, autoincrement=False, nullable=False),
        sa.Column("bundle_size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("publisher", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("signature", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("config", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("selector", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("min_agents", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("quorum", _TEXT, autoincrement=False, nullable=False),
        sa.Column("deadline_s", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("grace_s", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("late", _TEXT, autoincrement=False, nullable=False),
        sa.Column("priority", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("gate", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("seed", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("submitted_by", _TEXT, autoincrement=False, nullable=False),
        sa.Column("epoch", _TEXT, autoincrement=False, nullable=False),
        sa.Column("attempts", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("barren", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("needs", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("server_round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("num_rounds", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("exchanges", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reason", _TEXT, autoincrement=False, nullable=False),
        sa.Column("text", _TEXT, autoincrement=False, nullable=False),
        sa.Column("model", _TEXT, autoincrement=False, nullable=True),
        sa.Column("model_size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("created_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("started_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.Column("ended_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("run"),
    )
    op.create_index("ix_run_state", "run", ["state"])
    op.create_table(
        "task",
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("agent", _TEXT, autoincrement=False, nullable=False),
        sa.Column("state", _TEXT, autoincrement=False, nullable=False),
        sa.Column("payload", _TEXT, autoincrement=False, nullable=False),
        sa.Column("payload_size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("base", _TEXT, autoincrement=False, nullable=False),
        sa.Column("order", _TEXT, autoincrement=False, nullable=False),
        sa.Column("attempt", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reply", _TEXT, autoincrement=False, nullable=True),
        sa.Column("reply_size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("code", _TEXT, autoincrement=False, nullable=False),
        sa.Column("text", _TEXT, autoincrement=False, nullable=False),
        sa.Column("late", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("published_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.Column("settled_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("run", "n", "agent"),
    )
    op.create_index("ix_task_agent_state", "task", ["agent", "state"])
    op.create_index("ix_task_run_agent_state", "task", ["run", "agent", "state"])
    op.create_index("ix_task_run_n_state", "task", ["run", "n", "state"])
    op.create_table(
        "token",
        sa.Column("hashed", _TEXT, autoincrement=False, nullable=False),
        sa.Column("labels", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("uses_left", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("expires_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("created_by", _TEXT, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("hashed"),
    )
    op.create_table(
        "turn",
        sa.Column("run", _TEXT, autoincrement=False, nullable=False),
        sa.Column("agent", _TEXT, autoincrement=False, nullable=False),
        sa.Column("base", _TEXT, autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("waiting", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run", "agent"),
    )
    op.create_table(
        "uptime",
        sa.Column("name", _TEXT, autoincrement=False, nullable=False),
        sa.Column("uptime_s", sa.Double(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
