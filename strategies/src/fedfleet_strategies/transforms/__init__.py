"""Fewer bytes for an update on its way: each transform encodes a vector to arrays, and back.

Here belongs what both ends must agree on, with its error. Here does not belong when an update is sent, or to whom.
"""

from fedfleet_strategies.transforms.transform import Call, Transform, named

__all__ = ["Call", "Transform", "named"]
