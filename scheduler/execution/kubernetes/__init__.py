"""Execution on Kubernetes: reads the cluster, binds gangs of pods, launches jobs as pods."""
