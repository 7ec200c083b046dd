"""Files that people attach, made here: each with a text in it."""

import io
import zipfile

_NS = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def zipped(members: dict[str, str | bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def docx(text: str, *, doctype: str = "") -> bytes:
    ns = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = f'{doctype}<w:document xmlns:w="{ns}"><w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p>'
    rest = "<w:p><w:r><w:instrText>HYPERLINK</w:instrText><w:t>end</w:t></w:r></w:p></w:body></w:document>"
    return zipped({"word/document.xml": body + rest})


def pptx(text: str) -> bytes:
    ns = "http://schemas.openxmlformats.org/drawingml/2006/main"
    slide = f'<p:sld xmlns:p="p" xmlns:a="{ns}"><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:sld>'
    return zipped({"ppt/slides/slide1.xml": slide})


def odt(text: str) -> bytes:
    content = f'<o:document xmlns:o="o" xmlns:text="t"><text:p>{text}</text:p></o:document>'
    return zipped({"content.xml": content})


def xlsx(rows: str) -> bytes:
    """A workbook of one sheet; `rows` is the XML of its rows."""
    types = (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Override PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
        '<Override PartName="/xl/worksheets/sheet1.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>'
    )
    relations = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type="{}/{}" Target="{}"/></Relationships>'
    return zipped(
        {
            "[Content_Types].xml": types,
            "_rels/.rels": relations.format(_RELATIONS, "officeDocument", "xl/workbook.xml"),
            "xl/workbook.xml": f'<workbook {_NS} xmlns:r="{_RELATIONS}"><sheets><sheet name="Costs" sheetId="1" r:id="r1"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relations.format(
                _RELATIONS, "worksheet", "worksheets/sheet1.xml"
            ),
            "xl/worksheets/sheet1.xml": f"<worksheet {_NS}><sheetData>{rows}</sheetData></worksheet>",
        }
    )


def row(number: int, text: str, amount: float) -> str:
    return (
        f'<row r="{number}"><c r="A{number}" t="inlineStr"><is><t>{text}</t></is></c>'
        f'<c r="B{number}"><v>{amount}</v></c></row>'
    )


def pdf(text: str, *, pages: int = 1) -> bytes:
    """A document whose pages all show a line of ASCII."""
    kids = " ".join(f"{4 + number} 0 R" for number in range(pages))
    stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
    font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {pages} /Resources {font} /MediaBox [0 0 612 792] >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        *["<< /Type /Page /Parent 2 0 R /Contents 3 0 R >>"] * pages,
    ]
    return _pdf_of(objects)


def _pdf_of(objects: list[str]) -> bytes:
    made = b"%PDF-1.4\n"
    starts = []
    for number, written in enumerate(objects, 1):
        starts.append(len(made))
        made += f"{number} 0 obj\n{written}\nendobj\n".encode()
    table = "".join(f"{start:010} 00000 n \n" for start in starts)
    size = len(objects) + 1
    return (
        made
        + f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer << /Size {size} /Root 1 0 R >>\n"
        f"startxref\n{len(made)}\n%%EOF\n".encode()
    )


def tnef(*names: str) -> bytes:
    """Outlook's winmail.dat of files with these names."""
    titles = [name.encode("cp1252") + b"\0" for name in names]
    attributes = b"".join(
        b"\x02\x10\x80\x01\x00" + len(title).to_bytes(4, "little") + title + b"\0\0"
        for title in titles
    )
    return b"\x78\x9f\x3e\x22\x01\x00" + attributes


def looping_pdf() -> bytes:
    """A document of 2 kB whose forms show each other: 10 ** 9 of them."""
    show = "/X Do " * 10
    levels = 8
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 /MediaBox [0 0 612 792] >>",
        "<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /XObject << /X 5 0 R >> >> >>",
        f"<< /Length {len(show)} >>\nstream\n{show}\nendstream",
    ]
    for number in range(6, 6 + levels):
        shown = f"<< /XObject << /X {number} 0 R >> >>" if number < 5 + levels else "<< >>"
        text = show if number < 5 + levels else "BT ET"
        objects.append(
            f"<< /Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources {shown}"
            f" /Length {len(text)} >>\nstream\n{text}\nendstream"
        )
    return _pdf_of(objects)
