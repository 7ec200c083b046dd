"""Amounts, as people read them."""


def counted(number: int, noun: str) -> str:
    """Say "1 message", "2 messages", "1,000 mailboxes"."""
    plural = f"{noun}es" if noun.endswith("x") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
