"""SQLAlchemy 2 tables, queries and guarded commits. The transaction decides; caches are hints."""
