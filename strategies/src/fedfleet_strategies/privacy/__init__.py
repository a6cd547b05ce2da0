"""What the server's models tell of one device: clipping, noise, and an account of both.

Here belong guarantees of differential privacy. Here does not belong what hides an update from the server itself.
"""
