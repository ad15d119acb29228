"""The node agent: what this host offers, read from the host itself. It changes nothing there."""
