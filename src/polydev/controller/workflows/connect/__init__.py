"""The connect session and its parts."""
