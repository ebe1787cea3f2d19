"""`python -m hashgym` is `hashgym`."""

from hashgym.cli import main

main()
