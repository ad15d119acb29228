"""One module per kind of object; each holds a `router` and says what every route requires."""
