"""Haversack's scheduler: deciding who runs where, and launching what was decided."""
