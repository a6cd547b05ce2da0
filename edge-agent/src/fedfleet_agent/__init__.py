"""The agent: the resident process on a device. It trains nothing itself.

Here belongs what decides and does on the device: the task machine, its journal, what the owner allows, the link, the
transfers, the identity, and the loop that ties them together. Here does not belong anything that loads an app or an
array: that is `fedfleet_trainer`, another process. Nothing here imports flwr, numpy, torch or asyncio; an idle agent
is measured at 35 MiB.
"""

__version__ = "0.1.0"
