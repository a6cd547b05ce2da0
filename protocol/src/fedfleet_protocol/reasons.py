"""Reason codes: why something was refused, closed or failed. The only list of them; the reference page is made from it.

A code is for programs and never changes its meaning; the text that goes with it is for people and says what to do.
"""

DECLINE: dict[str, str] = {
    "battery": "the battery is below the owner's limit",
    "mains": "the device is not on mains power",
    "load": "the device is too busy",
    "memory": "too little free memory",
    "disk": "too little free disk space",
    "metered": "the link is metered",
    "window": "outside the owner's time windows",
    "paused": "the owner has paused this agent",
    "untrusted": "the bundle is not signed by a publisher that this device's owner trusts",
    "packages": "the app needs packages that are not installed on the device",
    "isolation": "the device cannot keep an app away from what its owner wants out of reach",
    "payload": "the task's payload cannot be read",
    "bundle": "the bundle cannot be unpacked or is not a Flower app",
    "state_lost": "the device no longer has the app state that this task builds on",
    "deadline": "the deadline passed before the work was done",
    "killed": "the trainer was killed from outside again and again",
    "too_large": "the reply is larger than the device's owner lets out",
    "egress": "the device's owner lets no reply to messages of this type out",
    "digest": "the reply's bytes do not have the digest it announced",
    "revoked": "the agent is revoked or was never enrolled",
}
"""Why an agent declines a task, or the coordinator in its place."""

CLOSE: dict[str, str] = {
    "all": "every task of the exchange is settled",
    "quorum": "the quorum was reached and the grace time is over",
    "deadline": "the deadline passed",
    "cancelled": "the run was stopped",
    "suspended": "the run was suspended; it goes on with the replies there are",
}
"""Why an exchange closed."""

GATE: dict[str, str] = {
    "not_finite": "an array holds NaN or infinity",
    "wrong_shape": "an array has another shape than the one sent",
    "wrong_dtype": "an array is of another kind than the one sent",
    "wrong_names": "arrays are missing, or there are some that were not sent",
    "wrong_records": "the reply does not have exactly one array record and one metric record",
    "bad_weight": "the weight is missing, not a number, not finite or not positive",
    "weight_cap": "the weight is more than the allowed multiple of the cohort's median",
    "norm_bound": "the update is farther from what was sent than the norm bound allows",
    "unreadable": "the reply is not a record stream",
    "app_error": "the app failed on the device",
}
"""Why a reply that arrived does not count: the update gate refused it, or it is an error itself."""

RUN: dict[str, str] = {
    "finished": "the app ended by itself",
    "stopped": "a user stopped it",
    "app_failed": "the ServerApp raised or exited",
    "bundle": "the app cannot be loaded",
    "nondeterministic": "run again, the app did not send what it had sent before",
    "too_few_agents": "fewer agents than the app needs",
    "no_results": "every reply of an exchange that needed results was a failure",
    "runner_died": "the runner died three times without getting any further",
    "epoch": "another runner has taken over",
    "deadline_exceeded": "it was active for longer than it may be",
    "lost": "the coordinator was restored from a backup that lacks what the run needs",
}
"""Why a run ended."""
