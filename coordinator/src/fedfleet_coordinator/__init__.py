"""The hub: fleet, exchanges and runs; the store behind them; API, link and PKI in front; runner and command line.

Here belongs what decides and keeps the truth (`exchanges`, `runs`, `fleet`, `store`) and the thin shells around it.
Here does not belong anything the agent needs: both sides meet in `fedfleet_protocol`. Only `runner` and `cli` know
Flower.
"""

__version__ = "0.1.0"
