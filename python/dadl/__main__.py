"""``python -m dadl``: the ``dadl`` command, e.g. under torchrun."""

from .cli import main

if __name__ == "__main__":
    main()
