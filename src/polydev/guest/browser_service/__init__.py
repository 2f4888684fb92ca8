"""HTTP service of a browser machine: runs one login of one CLI and reports the result.

The golden image holds a copy, which runs on the distribution's Python. So it uses only the standard
library and aiohttp (3.8 and later), and nothing else of Polydev. The controller calls it through
the machine's private channel.
"""
