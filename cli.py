"""`python cli.py …` is `sparse-transfer …`."""

from sparse_transfer.__main__ import main

if __name__ == "__main__":
    main()
