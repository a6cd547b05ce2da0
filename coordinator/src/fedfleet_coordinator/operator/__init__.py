"""Runs, made with kubectl: what is wanted of the cluster and of the coordinator, and how one is brought to the other.

`reconcile` decides: a pure function of what a FederatedRun asks for, what there is, and the time. `seen` and `actions`
are its values, `status` the projection of the store that people read, `jobs` the runner's Job as a manifest. Around it:
`cluster` and `watch` speak to the API server, `lease` says who may act. Here does not belong anything that agents or
runners see, and nothing here keeps a truth of its own: that is the store's.
"""
