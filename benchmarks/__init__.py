"""The numbers of the README, measured: `python -m benchmarks`. Both sides run on this machine, one after the other."""
