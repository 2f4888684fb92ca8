"""`polydev demo`: the main job, offline, with real CLIs."""
