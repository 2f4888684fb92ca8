"""Firecracker under its jailer behind the driver contract: what hosts with KVM run.

`standin/` plays both binaries where they cannot run; the driver does not know. Nothing is imported
here, so that the stand-in's binaries start without the driver.
"""
