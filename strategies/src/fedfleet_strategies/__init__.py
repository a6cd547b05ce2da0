"""Flower strategies and mods: what to aggregate, whom to ask, what goes on the wire, what is protected.

Here belongs one paper per module, on Flower's public interface, so that each runs on any Flower runtime. Here does not
belong anything that knows fedfleet's coordinator or agent. It is empty so far: stock Flower strategies run as they are.
"""
