"""Queries of chats and their events."""
