"""The controller process: pages, API, chats, workflows, store."""
