"""``python -m ebm_dist`` is the command ``ebm-dist``."""

from ebm_dist.cli.commands import main

if __name__ == "__main__":
    main()
