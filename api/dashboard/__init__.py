"""The static read-only page at `/`: index.html, app.js, style.css. It is a plain API client."""
