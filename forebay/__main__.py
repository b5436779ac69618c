"""`python -m forebay`, and the `forebay` command."""

from forebay.cli.interrupt import hear_interrupts, importing


def main() -> None:
    hear_interrupts()
    with importing():
        from forebay.cli.main import main as command
    command()


if __name__ == "__main__":
    main()
