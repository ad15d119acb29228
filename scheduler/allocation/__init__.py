"""Resource allocation: which gangs start now, on which nodes, on which GPUs, and why not.

Pure functions of a snapshot and a queue order. Read `knapsack` for the formulation.
"""
