"""The coordinator's HTTPS API: who may ask what, and the bytes of requests and answers.

Here belongs what HTTP needs: TLS, roles, body limits, ranges, status codes, server-sent events. What a request means
is decided in `exchanges`, `runs` and `fleet`, inside a transaction of the engine.

    server     TLS 1.3, connections and their time limits      roles      who may call which route
    services   what the routes may reach                       app        the application with all routes
    bodies     reading requests, writing answers               uploads    admission and resume of uploads
    agents     enrolment, renewal, asks, trust                 data       blobs and uploads of agents
    runner     what a run's ServerApp process asks             users      what people and their CLI ask
    snapshots  rows as JSON for people                         explain    why something is as it is
    health     liveness, readiness, metrics, doctor
"""
