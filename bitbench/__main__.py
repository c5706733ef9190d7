"""``python -m bitbench``: the command line from plain sources, without an installation."""

from bitbench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
