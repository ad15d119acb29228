"""The HTTP edge: routes parse, call `scheduler.service`, render. No logic lives here."""
