"""``python -m dadl`` imports nothing of the folder it is started in, where files of others may lie.

Python puts that folder first on ``sys.path`` before it imports this package, and after that PyTorch and all the rest.
"""

import os
import sys
from itertools import pairwise


def leave_current_folder_out() -> None:
    """Take the current folder from the path if Python itself has put it there for ``-m dadl``."""
    started = sys.argv[:1] == ["-m"] and any(
        option == "-m" and module.split(".")[0] == "dadl" for option, module in pairwise(sys.orig_argv)
    )
    if started and not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]
