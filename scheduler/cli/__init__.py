"""The `haversack` command: a plain HTTP client of the daemon, through `api.client` alone.

Data goes to stdout, progress and hints to stderr, exit codes are in `exits`.
"""
