"""Handwritten digits, learned by devices that each saw other digits."""
