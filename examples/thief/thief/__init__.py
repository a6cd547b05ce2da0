"""An app that steals what it can."""
