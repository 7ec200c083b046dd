"""The words of attached files: PDF, sheets, documents, text, calendars, Outlook's winmail.dat.

Here a stranger's bytes meet parsers that are not ours (pdfium, calamine, expat): only the child
process, whose limits are the wall, may call it. What is cheap to bound is bounded before. The
libraries are imported where they are used: most mail has no such file.
"""

import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import IO
from xml.parsers import expat

from ingestion.mail import html, visible
from ingestion.mail.charsets import decode

#: No more of a file is read, as it is and unpacked: calamine needs ten times as much.
MAX_FILE_BYTES = 30_000_000
MAX_UNPACKED_BYTES = 30_000_000
MAX_PAGES = 200
MAX_CELLS = 1_000_000
_MAX_SHEETS = 100
_CHUNK_BYTES = 100_000

#: Yields the words of a file, as many pieces as anybody takes; the text is the charset it says.
Reader = Callable[[bytes, str], Iterator[str]]


class Unreadable(Exception):
    """Says why a file's text can't be had, where that is known."""


def reader_of(type_: str, name: str) -> Reader | None:
    """Return what reads a file of a type, or else of a name; None: nobody does."""
    if type_ in _BY_TYPE:
        return _BY_TYPE[type_]
    _, _, extension = name.rpartition(".")
    found = _BY_EXTENSION.get(extension.lower())
    return found or (_text if type_.startswith("text/") else None)


def text_of(reader: Reader, data: bytes, charset: str, room: int) -> tuple[str, str]:
    """Return the first `room` characters of a file's text, and what is wrong, "" where that is all
    of it. Never raises for what the file holds."""
    pieces: list[str] = []
    defect = ""
    left = room
    try:
        for piece in reader(data, charset):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                defect = "its text is longer than what is searched of a message"
                break
    except Unreadable as error:
        defect = str(error)
    except Exception:  # noqa: BLE001 - parsers of others, which bytes of strangers met; MemoryError
        defect = "could not be read to its end" if pieces else "could not be read"
    return visible.lines("".join(pieces)[:room]).strip(), defect


def summary_of(calendar: bytes) -> str:
    """Return what the first event of a calendar is called, "" where it has no name."""
    found = _SUMMARY.search(_FOLD.sub("", decode(calendar)[0]))
    return visible.line(_of_calendar(found[2])) if found else ""


# -- text and calendars ----------------------------------------------------------------------------

_FOLD = re.compile(r"\r?\n[ \t]")
#: RFC 5545: what people wrote.
_WORDS = re.compile(
    r"^(SUMMARY|LOCATION|DESCRIPTION|COMMENT|CONTACT)(?:;[^:\n]*)?:(.*)$",
    re.MULTILINE | re.IGNORECASE,
)
_SUMMARY = re.compile(r"^(SUMMARY)(?:;[^:\n]*)?:(.*)$", re.MULTILINE | re.IGNORECASE)


def _text(data: bytes, charset: str) -> Iterator[str]:
    yield decode(data, charset)[0]


def _html(data: bytes, charset: str) -> Iterator[str]:
    said = html.charset_of(data)
    yield html.text_of(decode(data, charset or said, otherwise=said)[0])


def _calendar(data: bytes, charset: str) -> Iterator[str]:
    for found in _WORDS.finditer(_FOLD.sub("", decode(data, charset)[0])):
        yield _of_calendar(found[2]) + "\n"


def _of_calendar(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] in "nN" else found[1], value).strip()


# -- PDF -------------------------------------------------------------------------------------------


def _pdf(data: bytes, _: str) -> Iterator[str]:
    import pypdfium2  # noqa: PLC0415 - as the module says

    document = pypdfium2.PdfDocument(data)
    for number in range(min(len(document), MAX_PAGES)):
        page = document[number]
        yield page.get_textpage().get_text_bounded() + "\n"
        page.close()
    if len(document) > MAX_PAGES:
        raise Unreadable(f"only its first {MAX_PAGES} pages are searched")


# -- sheets ----------------------------------------------------------------------------------------


def _sheets(data: bytes, _: str) -> Iterator[str]:
    import python_calamine  # noqa: PLC0415 - as the module says

    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_size(archive.infolist())
    book = python_calamine.load_workbook(io.BytesIO(data))
    cells = 0
    for name in book.sheet_names[:_MAX_SHEETS]:
        yield f"{name}\n"
        for row in book.get_sheet_by_name(name).iter_rows():
            cells += len(row)
            if cells > MAX_CELLS:
                raise Unreadable(f"only its first {MAX_CELLS:,} cells are searched")
            words = [_of_cell(value) for value in row if value != ""]
            if words:
                yield "\t".join(words) + "\n"


def _of_cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


# -- documents: XML in a zip -----------------------------------------------------------------------

_IN_OFFICE = re.compile(
    r"word/(?:document|footnotes|endnotes|comments|header\d*|footer\d*)\.xml"
    r"|ppt/(?:slides/slide|notesSlides/notesSlide)\d+\.xml"
)
_PARAGRAPHS = frozenset({"p", "h", "br", "cr"})
_SPACES = frozenset({"tab", "s"})


def _office(data: bytes, _: str) -> Iterator[str]:
    """Word and PowerPoint (ECMA-376): text is in elements "t"."""
    return _of_zip(data, _IN_OFFICE, only="t")


def _open_document(data: bytes, _: str) -> Iterator[str]:
    """OpenDocument (ISO 26300): all characters of the content are text."""
    return _of_zip(data, re.compile(r"content\.xml"), only="")


def _of_zip(data: bytes, names: re.Pattern[str], *, only: str) -> Iterator[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [member for member in archive.infolist() if names.fullmatch(member.filename)]
        _check_size(members)
        for member in members:
            with archive.open(member) as file:
                yield from _of_xml(file, only)
                yield "\n"


def _check_size(members: list[zipfile.ZipInfo]) -> None:
    """Raises Unreadable. A zip that lies here is cut where it said that it ends."""
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise Unreadable(f"unpacked it is larger than {MAX_UNPACKED_BYTES:,} bytes")


def _of_xml(file: IO[bytes], only: str) -> Iterator[str]:
    """Yield the characters of XML that stand in elements of a local name, or in any."""
    pieces: list[str] = []
    taking = not only

    def started(name: str, _attributes: object) -> None:
        nonlocal taking
        local = name.rpartition(":")[2]
        taking = taking or local == only
        if local in _SPACES:
            pieces.append(" ")

    def ended(name: str) -> None:
        nonlocal taking
        local = name.rpartition(":")[2]
        if local == only:
            taking = False
        if local in _PARAGRAPHS:
            pieces.append("\n")

    def characters(text: str) -> None:
        if taking:
            pieces.append(text)

    def refuse(*_: object) -> None:
        raise Unreadable("it declares entities, which no program writes")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = started, ended
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = refuse
    while chunk := file.read(_CHUNK_BYTES):
        parser.Parse(chunk)
        yield "".join(pieces)
        pieces.clear()


# -- Outlook's winmail.dat -------------------------------------------------------------------------

_TNEF = 0x223E9F78
_ATTRIBUTE = struct.Struct("<BII")
#: MS-OXTNEF section 2.1.3.3: the subject, and an attached file's name.
_TNEF_WORDS = frozenset({0x00018004, 0x00018010})


def _tnef(data: bytes, _: str) -> Iterator[str]:
    """Yield the subject, and the names of the files in it (MS-OXTNEF); their text is not read."""
    if data[:4] != _TNEF.to_bytes(4, "little"):
        raise Unreadable("it is not what its type says")
    at = 6
    while at + _ATTRIBUTE.size <= len(data):
        _level, attribute, length = _ATTRIBUTE.unpack_from(data, at)
        at += _ATTRIBUTE.size
        if attribute in _TNEF_WORDS:
            yield visible.line(decode(data[at : at + length].partition(b"\0")[0])[0]) + "\n"
        at += length + 2  # a checksum


_OOXML = "application/vnd.openxmlformats-officedocument."
_ODF = "application/vnd.oasis.opendocument."
_BY_TYPE: dict[str, Reader] = {
    "application/pdf": _pdf,
    f"{_OOXML}spreadsheetml.sheet": _sheets,
    "application/vnd.ms-excel": _sheets,
    f"{_ODF}spreadsheet": _sheets,
    f"{_OOXML}wordprocessingml.document": _office,
    f"{_OOXML}presentationml.presentation": _office,
    f"{_ODF}text": _open_document,
    f"{_ODF}presentation": _open_document,
    "text/html": _html,
    "application/xhtml+xml": _html,
    "text/calendar": _calendar,
    "application/ics": _calendar,
    "application/ms-tnef": _tnef,
    "application/vnd.ms-tnef": _tnef,
}
_BY_EXTENSION: dict[str, Reader] = {
    **dict.fromkeys(("pdf",), _pdf),
    **dict.fromkeys(("xlsx", "xlsm", "xlsb", "xls", "ods"), _sheets),
    **dict.fromkeys(("docx", "docm", "pptx", "pptm"), _office),
    **dict.fromkeys(("odt", "odp"), _open_document),
    **dict.fromkeys(("html", "htm"), _html),
    **dict.fromkeys(("txt", "csv", "tsv", "md", "log", "json", "xml"), _text),
    "ics": _calendar,
}
