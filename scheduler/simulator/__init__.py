"""The simulator: the daemon's own cycle under a simulated clock, on recorded workloads."""
