"""What models and updates tell of one device: clipping, noise, and an account of both.

Here belong guarantees of differential privacy. Here does not belong what hides an update from the server without noise.
`local` is imported by those who need it: it belongs to the client half.
"""

from fedfleet_strategies.privacy.central import AdaptivePrivacy, CentralPrivacy
from fedfleet_strategies.privacy.privacy import Planned, Privacy

__all__ = ["AdaptivePrivacy", "CentralPrivacy", "Planned", "Privacy"]
