"""The runner: the process that executes one run's ServerApp, on exchanges that survive anything.

Here belongs what makes an ordinary ServerApp durable without its knowing: the Grid over the coordinator's API, the
round loop that commits each round, the update gate, and what is known of replies. Here does not belong what decides
about exchanges and runs: the coordinator does, and a runner is its client, a hostile one as far as it is concerned.

    hub          what a runner asks of the coordinator         https        the same over HTTPS
    wire         requests that are repeated until answered     channel      blobs as descriptors, on one machine
    payloads     messages on their way out                     replies      replies on their way in
    sending      exchanges: messages out, replies in           gate         which replies may be aggregated
    grid         Flower's Grid                                 patience     waiting for agents
    freezing     an object's state as a content, and back      chance       random generators
    checkpoints  what is committed after each round            rounds       Flower's round loop, durable
    legacy       apps written for `server_fn`                  output       what the app prints
    execution    one ServerApp from its start to its end       process      the runner's process around it
    scratch      files without names                           testing      the hub's in-memory twin
    confinement  what the process may still reach
"""
