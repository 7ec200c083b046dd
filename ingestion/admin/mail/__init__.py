"""The mail view: places, a list of messages, and one message, on one page. Reads only.

`asked` is the page's state as its address has it, `places` the left pane, `rows` the middle one;
`views` puts them together. static/ingestion/mail.js exchanges single panes and adds the keyboard.
"""
