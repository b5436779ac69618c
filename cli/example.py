"""Examples in help texts. A test runs each of them."""


def example(line: str) -> str:
    """The end of a command's help."""
    return f"\b\nExample:\n  {line}"
