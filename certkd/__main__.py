"""``python -m certkd``, where the command is not on the path."""

from certkd.cli import main

if __name__ == "__main__":
    main()
