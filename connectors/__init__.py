"""Providers of mail, one package each, and what they share. Pure Python: no Django, no database.

A connector reads mail and writes nothing, here or there; `base` is what it owes the engine. Where
providers do the same thing, the module has the same name:

    config.py      what a source of the provider needs
    connector.py   Connector and MailboxSession: what the engine calls
    client.py      the way to the server: logins or requests, their pace and patience
    tokens.py      access tokens
    consent.py     how a person grants access in the browser
    directory.py   the users of a domain or tenant
    folders.py     the folders of a mailbox
    listing.py     what changed since a cursor
    download.py    the bytes of messages, by the workers of `parallel`
    bodies.py      how an answer becomes a body
    refusals.py    what the provider's no means, as one of `errors`
"""
