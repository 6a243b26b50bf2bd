"""``python -m decipher_rt``: the command line, where its script is not on the PATH."""

from decipher_rt.cli import main

if __name__ == "__main__":
    main()
