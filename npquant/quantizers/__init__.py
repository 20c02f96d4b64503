"""Codecs: vectors to a few bytes and back."""
