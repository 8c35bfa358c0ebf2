"""The command line: `python cli.py --help`."""

from sde_diffusion_cli import main

if __name__ == "__main__":
    main()
