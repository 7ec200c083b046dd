"""A message with one of each: text beside HTML, a picture in it, attachments, a conversation."""

import base64

from ingestion.models import Folder, Message
from tests.documents import indexed
from tests.e2e.rows import archived

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAYAAACNMs+9AAAAFUlEQVR42mNk+M9Qz0AEYBxVSF+FABJADveWkH6oAAAA"
    "AElFTkSuQmCC"
)
CSV = b"a,b\n1,2\n" * 50
HTML = (
    b'<p onclick="alert(1)">Pay <b>now</b></p><script>alert(2)</script><img src="cid:pic">'
    b'<img src="https://tracker.example/p.gif"><a href="https://shop.example/">shop</a>'
)
HEADERS = (
    b"From: Ann <ann@example.com>\r\nTo: Bob <bob@example.org>\r\nReply-To: help@example.com\r\n"
    b"Message-ID: <2@example.com>\r\nIn-Reply-To: <1@example.com>\r\nSubject: Offer\r\n"
)
#: Its first attachment is the picture of the HTML, the second the table.
RICH = (
    HEADERS + b'Content-Type: multipart/mixed; boundary="m"\r\n\r\n'
    b'--m\r\nContent-Type: multipart/alternative; boundary="a"\r\n\r\n'
    b"--a\r\nContent-Type: text/plain\r\n\r\nThe plain words.\r\n"
    b'--a\r\nContent-Type: multipart/related; boundary="r"\r\n\r\n'
    b"--r\r\nContent-Type: text/html\r\n\r\n" + HTML + b"\r\n"
    b"--r\r\nContent-Type: image/png\r\nContent-ID: <pic>\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + base64.encodebytes(PNG)
    + b"\r\n--r--\r\n--a--\r\n"
    b"--m\r\nContent-Type: text/csv\r\nContent-Transfer-Encoding: base64\r\n"
    b"Content-Disposition: attachment; filename*=utf-8''Preise%20M%C3%A4rz.csv\r\n\r\n"
    + base64.encodebytes(CSV)
    + b"\r\n--m--\r\n"
)


def in_conversation(folder: Folder) -> tuple[Message, Message]:
    """Archive and index RICH, and the message that it answers."""
    first, rich = archived(
        folder,
        b"From: bob@example.org\r\nMessage-ID: <1@example.com>\r\nSubject: Ask\r\n\r\nx",
        RICH,
    )
    indexed(first, "x", thread=7)
    indexed(rich, "words", thread=7, fields={"replyTo": "help@example.com"})
    return first, rich
