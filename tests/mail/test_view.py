"""HTML of mail as it is shown: it looks like itself, runs nothing, fetches nothing, hides no target."""

import base64
import re
import time

import pytest

from ingestion.mail import view
from ingestion.mail.view import Html, html_of
from tests.mail.test_body import HTML, TEXT, multipart

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


#: As nh3 writes them: nothing else may look like one.
_TAG = re.compile(r'</?([a-z][a-z0-9]*)((?: [a-z]+="[^"]*")*)>')
_ATTRIBUTE = re.compile(r' ([a-z]+)="([^"]*)"')


def shown(markup: str, *, remote: bool = False) -> str:
    return html_of((HTML + markup).encode(), remote=remote).markup


def with_picture(markup: str, data: bytes = PNG, kind: str = "image/png") -> Html:
    picture = (
        f"Content-Type: {kind}\r\nContent-ID: <one@x>\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    ).encode() + base64.encodebytes(data)
    return html_of(multipart(HTML + markup, picture, kind="related"))


#: Each would run something, somewhere, some day.
RUNNING = [
    "<script>run()</script>",
    "<img src=x onerror=run()>",
    "<svg onload=run()><script>run()</script></svg>",
    "<math><mtext><table><mglyph><style><img src onerror=run()>",
    "<noscript><p title='</noscript><img src=x onerror=run()>'>",
    "<a href='javascript:run()'>x</a>",
    "<a href='jav&#x09;ascript:run()'>x</a>",
    "<a href='data:text/html,<script>run()</script>'>x</a>",
    "<a href=' vbscript:run()'>x</a>",
    "<iframe srcdoc='<script>run()</script>'></iframe>",
    "<object data='x:run()'><embed src='x:run()'></object>",
    "<form action='javascript:run()'><input onfocus=run() autofocus></form>",
    "<meta http-equiv=refresh content='0;url=javascript:run()'>",
    "<base href='javascript:run()//'>",
    "<link rel=stylesheet href='javascript:run()'>",
    "<img src='data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9cnVuKCk+run()'>",
    "<p style='width:expression(run())'>x",
    "<p style='behavior:url(#run())'>x",
    "<style><!--</style><img src=x onerror=run()>--></style>",
    "<style>p{color:red}</style ><img src=x onerror=run()>",
    "<style>p{font-family:'</style><img src=x onerror=run()>'}</style>",
    "<style>@import 'run()'; p{background:url(javascript:run())}</style>",
    "<!--><img src=x onerror=run()>-->",
    "<textarea><img title='</textarea><img src=x onerror=run()>'>",
    "<title><style></title><img src=x onerror=run()>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=run()>",
    "<svg></p><style><a id='</style><img src=1 onerror=run()>'>",
    "<p id='</p><img src=x onerror=run()>'>",
    "<table><td background='javascript:run()'>x",
    "<img src='cid:x' style='background:url(javascript:run())'>",
    "<img alt='`onerror=run()' src=x><img alt='<x>' title='\"><img src=x onerror=run()>'>",
    "<a href='https://x/\" onclick=run() x=\"'>x</a>",
    "<select><template><style><!--</style><a rel='--></style></select><img src onerror=run()>'>",
    "<details open ontoggle=run()>x</details><video autoplay onplay=run()><source onerror=run()>",
    "<div style='animation:x' onanimationstart=run()><style>@keyframes x{}</style>",
]


@pytest.mark.parametrize("markup", RUNNING)
def test_nothing_that_runs_is_left(markup: str) -> None:
    left, style = shown(markup), ""
    if left.startswith("<style>"):
        style, _, left = left.partition("</style>")
    assert "<" not in _TAG.sub("", left)
    assert "<" not in style[1:]
    assert "run(" not in style
    for tag, written in _TAG.findall(left):
        attributes = dict(_ATTRIBUTE.findall(written))
        assert tag not in {"script", "svg", "math", "iframe", "object", "embed", "form", "input"}
        assert tag not in {"meta", "base", "link", "style", "template", "video"}
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "https:").startswith(("https:", "http:", "mailto:", "tel:"))
        assert re.match(
            r"data:image/(png|jpe?g|gif|webp|bmp)", attributes.get("src", "data:image/gif")
        )
        assert attributes.get("background", "data:image/").startswith("data:image/")
        assert "run(" not in attributes.get("style", "")


REMOTE = [
    "<img src='https://spy.example/a.gif'>",
    "<img src='//spy.example/a.gif'>",
    "<img src='HTTP://spy.example/a.gif'>",
    "<table background='https://spy.example/a.gif'><tr><td>x</table>",
    "<p style='background:url(https://spy.example/a.gif)'>x",
    "<p style='background-image:url( \"//spy.example/a.gif\" )'>x",
    "<style>p{background:#fff url('https://spy.example/a.gif') no-repeat}</style><p>x",
]


@pytest.mark.parametrize("markup", REMOTE)
def test_nothing_is_fetched_and_what_would_have_been_is_counted(markup: str) -> None:
    said = html_of((HTML + markup).encode())
    assert "spy.example" not in said.markup
    assert said.remote == 1


OTHER_WAYS = [
    "<img srcset='https://spy.example/a.gif 2x'>",
    "<video src='https://spy.example/a' poster='https://spy.example/b'></video>",
    "<link rel=prefetch href='https://spy.example/'>",
    "<p style='background:u\\72l(https://spy.example/)'>x",
    "<p style='background:url(/**/https://spy.example/)'>x",
    "<p style='background:image-set(\"https://spy.example/\" 1x)'>x",
    "<p style='content:url(https://spy.example/)'>x",
    "<style>@import 'https://spy.example/';@import url(//spy.example);</style>",
    "<style>@font-face{font-family:x;src:url(https://spy.example/)}</style>",
    "<style>p[a='url(https://spy.example/)']{color:red}</style>",
    "<style>p{--x:url(https://spy.example/)}</style>",
    "<img src='cid:https://spy.example/'>",
    "<a ping='https://spy.example/'>x</a>",
]


@pytest.mark.parametrize("markup", OTHER_WAYS)
def test_no_other_way_leads_out(markup: str) -> None:
    assert "spy.example" not in shown(markup)


@pytest.mark.parametrize("markup", REMOTE)
def test_pictures_come_from_elsewhere_where_that_is_asked_for(markup: str) -> None:
    said = html_of((HTML + markup).encode(), remote=True)
    assert "//spy.example/a.gif" in said.markup
    assert said.remote == 0


def test_a_link_opens_apart_and_shows_where_it_leads() -> None:
    link = shown(
        '<a style="color:red" title="your bank" href="https://thief.example/?a=1&b=2">x</a>'
    )
    assert 'title="https://thief.example/?a=1&amp;b=2"' in link
    assert "your bank" not in link
    assert 'target="_blank"' in link
    assert 'rel="noopener noreferrer"' in link
    assert 'style="color:red"' in link


def test_pictures_of_the_message_are_put_in_by_what_they_are() -> None:
    said = with_picture("<img src='cid:one%40x' alt=logo>", kind="application/octet-stream")
    assert f'src="data:image/png;base64,{base64.b64encode(PNG).decode()}"' in said.markup
    assert with_picture("<img src=cid:one@x>", b"<svg onload=run()>").markup.strip() == "<img>"


def test_pictures_are_put_in_up_to_a_bound_however_often_they_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(view, "MAX_PICTURE_BYTES", 3 * len(PNG))
    said = with_picture("<img src=cid:one@x>" * 100)
    assert said.markup.count("data:") == 3
    assert said.notes == (f"Its pictures beyond {3 * len(PNG)} bytes are not shown.",)


def test_a_newsletter_keeps_its_looks() -> None:
    left = shown(
        "<html><head><style type='text/css'>@import 'x'; .card{width:600px;color:#333;position:fixed}"
        " @media only screen and (max-width:600px){ .card{width:100% !important} }"
        ' p[class="a"]{margin:0}</style></head>'
        "<body bgcolor=#eeeeee style='margin:0;font-family:\"Segoe UI\",Arial'>"
        "<!--[if mso]><style>.card{color:red}</style><![endif]-->"
        "<table width=600 cellpadding=0 bgcolor=white><tr><td class=card align=center "
        "style='padding:10px;position:absolute;background:linear-gradient(#fff,rgb(1,2,3))'>"
        "<font color=red face=Arial>Sale</font></td></tr></table></body></html>"
    )
    assert left == (
        "<style>\n.card{width:600px;color:#333}\n"
        "@media only screen and (max-width:600px){.card{width:100% !important}\n}\n"
        'p[class="a"]{margin:0}\n</style>\n'
        '<div bgcolor="#eeeeee" style="margin:0;font-family:&quot;Segoe UI&quot;,Arial">'
        '<table width="600" cellpadding="0" bgcolor="white"><tbody><tr>'
        '<td class="card" align="center" '
        'style="padding:10px;background:linear-gradient(#fff,rgb(1,2,3))">'
        '<font color="red" face="Arial">Sale</font></td></tr></tbody></table></div>'
    )


def test_a_background_keeps_its_colour_without_its_picture() -> None:
    style = "color:#fff;background:#123 url('https://spy.example/a.jpg') center/cover no-repeat"
    assert shown(f'<p style="{style}">x').startswith(
        '<p style="color:#fff;background:#123 center/cover no-repeat">'
    )
    assert shown('<p style="background-image:url(https://spy.example/a.jpg)">x') == "<p>x</p>"


@pytest.mark.parametrize("value", [r"r\65 d", "'red", "red}", "rgb(1,2", "@red"])
def test_css_that_is_not_wholly_understood_is_left_out(value: str) -> None:
    left = shown(f'<p style="color:{value};margin:0">x')
    assert left == '<p style="margin:0">x</p>'


def test_all_html_of_a_message_is_shown_and_no_attached_file() -> None:
    attached = (
        "Content-Type: text/html; name=a.html\r\nContent-Disposition: attachment\r\n\r\n<p>file"
    )
    said = html_of(multipart(HTML + "<p>one", TEXT + "two", HTML + "<p>three", attached))
    assert said.markup == "<p>one</p>\n<hr>\n<p>three</p>"


def test_a_message_without_html_says_so() -> None:
    assert html_of(TEXT.encode()) == Html(notes=("This message has no HTML.",))


def test_what_is_nested_too_deep_is_shown_as_text() -> None:
    said = html_of((HTML + "<div>" * 50_000 + "<b>deep</b> &lt;i>").encode())
    assert said.markup.startswith("<div>" * 500 + "<pre>deep &lt;i&gt;</pre>")
    assert said.notes == ("Nested more than 500 deep: from there on it is shown as text.",)


def test_a_tag_whose_name_begins_as_one_that_is_flat_is_not_flat() -> None:
    said = html_of((HTML + "<p-x>" * 2_000 + "deep").encode())
    assert said.notes == ("Nested more than 500 deep: from there on it is shown as text.",)


@pytest.mark.parametrize(
    "value",
    [
        f"url({' ' * 20_000}x",
        f"url('{' ' * 20_000}x",
        f"url(//a{' ' * 20_000}x",
        "url( " * 4_000,
        "url(//" * 3_000,
        "x" * 20_000,
        "rgb" + " " * 20_000 + "x",
        "'x" * 10_000,
    ],
    ids=range(8),
)
def test_no_css_takes_seconds(value: str) -> None:
    started = time.process_time()
    shown(f"<style>p{{background:{value}}} p{{color:{value}}}</style>", remote=True)
    shown(f'<p style="background:{value};color:{value}">x')
    assert time.process_time() - started < 2


def test_end_tags_of_others_do_not_make_deep_markup_look_flat() -> None:
    said = html_of((HTML + "<b></i>" * 2_000 + "deep").encode())
    assert said.notes == ("Nested more than 500 deep: from there on it is shown as text.",)


def test_thousands_of_cells_and_paragraphs_are_not_deep() -> None:
    assert html_of((HTML + "<table>" + "<tr><td><p>x" * 2_000).encode()).notes == ()
