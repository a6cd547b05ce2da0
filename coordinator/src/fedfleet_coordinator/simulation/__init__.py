"""A fleet that does not exist: any Flower app on virtual devices, in virtual time, on this machine.

What belongs here is what stands in for devices, links and time: `devices` and `fleet` (what they are like), `pool` (the
processes that call the ClientApp in their place), `hub` (the coordinator's own rules over a clock that is set forward),
`session` (one simulated run from start to end). What a run, an exchange and a reply are is not decided here: the
machines are those of the coordinator, the ServerApp is executed by the runner's code, the ClientApp is called by the
trainer's.
"""
