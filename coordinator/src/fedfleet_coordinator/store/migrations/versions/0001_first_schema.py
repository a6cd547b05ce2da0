"""The first schema: one table per row."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "agent",
        sa.Column("agent", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("public_key", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("previous_key", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("serial", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("serials", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("not_after_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("labels", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("self_labels", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("online", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("seen_at", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("seen_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("eligible", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("code", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("token", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("enrolled_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("agent"),
    )
    with op.batch_alter_table("agent", schema=None) as batch_op:
        batch_op.create_index("ix_agent_state", ["state"], unique=False)
        batch_op.create_index("ix_agent_token", ["token"], unique=False)

    op.create_table(
        "blob",
        sa.Column("digest", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("file", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("inline", sa.LargeBinary(), autoincrement=False, nullable=True),
        sa.Column("stored_at", sa.Double(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    with op.batch_alter_table("blob", schema=None) as batch_op:
        batch_op.create_index("ix_blob_stored_at", ["stored_at"], unique=False)

    op.create_table(
        "exchange",
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("request", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("label", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("deadline_at", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("quorum", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("grace_s", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("grace_at", sa.Double(), autoincrement=False, nullable=True),
        sa.Column("late", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("expected", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("settled", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("accepted", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("opened_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("closed_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("run", "n"),
    )
    with op.batch_alter_table("exchange", schema=None) as batch_op:
        batch_op.create_index("ix_exchange_run_state", ["run", "state"], unique=False)
        batch_op.create_index("ix_exchange_state", ["state"], unique=False)

    op.create_table(
        "gridanswer",
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("k", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Text(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run", "k"),
    )
    op.create_table(
        "logline",
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("line", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("at_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run", "seq"),
    )
    op.create_table(
        "metrics",
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("server_round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("values", sa.Text(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run", "server_round", "kind"),
    )
    op.create_table(
        "position",
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("next_n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("next_answer", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("keep_below", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("server_round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("blobs", sa.Text(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run"),
    )
    op.create_table(
        "ref",
        sa.Column("digest", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("digest", "holder"),
    )
    with op.batch_alter_table("ref", schema=None) as batch_op:
        batch_op.create_index("ix_ref_holder", ["holder"], unique=False)
        batch_op.create_index("ix_ref_run_n", ["run", "n"], unique=False)

    op.create_table(
        "run",
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("app", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("bundle_size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("publisher", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("signature", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("config", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("selector", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("min_agents", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("quorum", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("deadline_s", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("grace_s", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("late", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("priority", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("gate", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("seed", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("submitted_by", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("attempts", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("barren", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("server_round", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("num_rounds", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("exchanges", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=True),
        sa.Column("model_size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("created_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("started_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.Column("ended_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("run"),
    )
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.create_index("ix_run_state", ["state"], unique=False)

    op.create_table(
        "task",
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("agent", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("payload", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("payload_size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("base", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("order", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reply", sa.Text(), autoincrement=False, nullable=True),
        sa.Column("reply_size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("code", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("late", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("published_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.Column("settled_wall", sa.Double(), autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("run", "n", "agent"),
    )
    with op.batch_alter_table("task", schema=None) as batch_op:
        batch_op.create_index("ix_task_agent_state", ["agent", "state"], unique=False)
        batch_op.create_index("ix_task_run_agent_state", ["run", "agent", "state"], unique=False)
        batch_op.create_index("ix_task_run_n_state", ["run", "n", "state"], unique=False)

    op.create_table(
        "token",
        sa.Column("hashed", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("labels", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("uses_left", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("expires_wall", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("created_by", sa.Text(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("hashed"),
    )
    op.create_table(
        "turn",
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("agent", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("base", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("waiting", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run", "agent"),
    )
    op.create_table(
        "uptime",
        sa.Column("name", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("uptime_s", sa.Double(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
