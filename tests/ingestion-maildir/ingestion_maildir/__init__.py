"""A provider in a package of its own, as docs/adding-a-provider.md shows it: Maildir directories."""
