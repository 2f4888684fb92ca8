"""Queries, a folder per subject and a module per aggregate."""
