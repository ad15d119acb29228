"""Layer 3: makes committed intents real, watches what runs, and reconciles the two.

`apply`, `watch` and `reconcile` know only the ports of `scheduler.model.ports`; `local` is the
executor for attempts on this host.
"""
