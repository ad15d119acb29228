"""Attempts on this host: one launcher process each, which outlives the daemon.

The truth about an attempt is its folder and the kernel's process table, never the daemon's memory.
`launcher`, `gang`, `ranks`, `rank_log`, `master_port`, `orders`, `files` and `process` run inside
the launcher: they import the standard library only, and its cheap part (no typing, no dataclasses:
together they would double a launcher's start time).
"""
