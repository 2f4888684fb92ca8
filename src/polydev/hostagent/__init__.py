"""The host agent: the machines of one host, and nothing else.

It runs as root and owns disks, the VM network's namespace, VMM processes and channels. It never
sees the database, ENCRYPTION_KEY or another host.
"""
