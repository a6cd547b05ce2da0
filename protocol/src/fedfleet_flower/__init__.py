"""The bridge between fedfleet's bytes and Flower's objects, for the processes that call app code: trainer and runner.

Here belongs what knows both sides: contents as Flower messages, bundles as Flower apps, and the few private things of
flwr (`compat` alone). Here does not belong what the resident agent or the coordinator imports: they know neither flwr
nor numpy.
"""
