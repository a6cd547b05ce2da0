"""pytest: the fixture `fedfleet_fleet`."""
