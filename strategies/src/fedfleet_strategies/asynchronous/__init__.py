"""Strategies that wait for nobody: devices train on the model there is, and late updates count less.

Here belongs what to do with an update by its age. Here does not belong how tasks travel: that is the Grid's.
"""
