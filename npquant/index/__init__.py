"""Indexes: codes that can be searched."""
