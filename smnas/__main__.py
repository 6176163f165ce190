"""``python -m smnas``, which is what ``torchrun -m smnas train ...`` starts."""

from smnas.cli.main import main

if __name__ == "__main__":
    main()
