"""The HTTP service of a browser machine: runs one login of one CLI and reports what came of it.

Copied as it stands into the golden image and run by the distribution's Python, so it uses the
standard library and aiohttp (3.8 and later) only, and nothing of the rest of Polydev. The
controller calls it through the machine's private channel.
"""
