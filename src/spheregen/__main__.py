"""`python -m spheregen`: the command, as launchers such as torchrun want it."""

from spheregen.cli.main import run

if __name__ == "__main__":
    run()
