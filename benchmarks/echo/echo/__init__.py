"""An app that only sends: what is left of an exchange when nobody trains."""
