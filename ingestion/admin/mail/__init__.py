"""The mail view: places, a list of messages, and one message, on one page.

`asked` is the page's state as its address has it, `places` the left pane, `rows` the middle one;
`views` puts them together; `saving` keeps what a list is of under a name. The script,
static/ingestion/mail.js, exchanges single panes and has the keys.
"""
