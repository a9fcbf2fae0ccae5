"""Dialects: the ways to lay an embedding out in a file, one small module each."""
