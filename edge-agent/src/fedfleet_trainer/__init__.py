"""The trainer: the agent's child process that loads a ClientApp and calls it. It may be hostile: it runs others' code.

It is two processes. The outer one (`keeper`) knows neither Flower nor the app: it speaks with the agent, passes on what
the app prints, watches processor time and memory, and tells how the inner one ended, whatever the app does to itself.
The inner one (`caller`) holds flwr, numpy and the app. Here does not belong anything of the agent: keys, journal and
network are out of reach.
"""
