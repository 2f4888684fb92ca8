"""The jail of a Firecracker process: jailer, mounts, cgroup and files."""
