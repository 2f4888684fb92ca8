"""Routes of chats."""
