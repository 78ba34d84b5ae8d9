"""`python -m nusku` is the `nusku` command."""

from nusku.cli import main

if __name__ == "__main__":
    main()
