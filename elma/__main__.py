"""`python -m elma`: the same program as the installed command `elma`."""

from elma.cli import main

if __name__ == "__main__":
    main()
