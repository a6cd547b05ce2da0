"""Many agents and exchanges over a seeded, lossy link in virtual time. The machines are the real ones."""
