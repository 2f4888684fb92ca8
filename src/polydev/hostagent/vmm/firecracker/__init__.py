"""The driver for Firecracker under its jailer, for hosts with KVM.

`polydev.testing.fake_firecracker` replaces both programs in tests. Nothing is imported here, so
that the fake programs start without the driver.
"""
