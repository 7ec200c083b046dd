"""The mail view: places, a list of messages, and one message, on one page.

`asked` is the page's state as its address has it, `places` the left pane, `rows` the middle one;
`views` puts them together; `actions` saves and exports what a list is of. The script,
static/ingestion/mail.js, exchanges single panes and has the keys.
"""
