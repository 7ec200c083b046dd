"""The archive's files: packs, the records in them, and the process that writes them.

Owns their format and their durability. Knows no rows; who asks says what is new.
"""
