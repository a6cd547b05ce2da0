"""What both sides share of a task as the agent sees it: its states."""

from enum import StrEnum


class Stage(StrEnum):
    """Where the agent is with its task. TRAINING lives in memory only; after a crash it is ASSIGNED again."""

    IDLE = "idle"
    ASSIGNED = "assigned"
    TRAINING = "training"
    READY = "ready"
