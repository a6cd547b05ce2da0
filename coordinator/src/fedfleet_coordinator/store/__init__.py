"""The store: the one place where the truth is. A port, an in-memory twin and the real one over SQLAlchemy.

Here belongs how rows are kept; what the rows mean belongs to `exchanges`, `runs` and `fleet`.
"""

from fedfleet_coordinator.store.port import Store, Tx

__all__ = ["Store", "Tx"]
