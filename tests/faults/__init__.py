"""A disk that can be watched and can fail: for files that Python writes, and for SQLite's."""
