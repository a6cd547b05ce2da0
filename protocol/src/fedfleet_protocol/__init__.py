"""The contract that coordinator and agents share.

Here belongs what both sides must agree on: ids, topics, messages, blocks, records, envelopes, states and reason codes.
Here does not belong anything that opens a socket or a file, reads a clock or draws a random number: those are
arguments.
"""
