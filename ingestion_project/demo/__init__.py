"""`make demo`: the whole service at work on a mailbox of its own, every byte of it checked.

mail.py makes the messages, imap_server.py serves them, screen.py shows, story.py is what happens.
"""
