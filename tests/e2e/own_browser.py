"""Sign in with a local browser in the fake providers' network.

Prints the final callback URL, which is unreachable on the user's machine. Run as a program:
`ip netns exec NAME python own_browser.py URL PROXY CA`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from contract.clis.cli_world import User

if __name__ == "__main__":
    url, proxy, authority = sys.argv[1:]
    print(User(proxy, authority, reaches_callbacks=False).log_in(url).url)
