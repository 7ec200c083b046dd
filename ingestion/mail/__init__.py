"""Bytes of a mail to what people read. Pure: knows no database, no archive, no provider."""
