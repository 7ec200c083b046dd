"""The pages of a consent link: for a person without a login, who sees nothing else of the service.

    /connect/#TOKEN   the token is behind the #, which browsers send to nobody: it stands in no log
    /connect/open/    takes it once, and gives this browser a cookie of its own instead
    /connect/         who asks, for what; then the provider's page, or a field for a password
    /connect/back/    where api.consent sends a browser on that comes back from a provider

Pages here have a form, also for the next link, and need the same-origin policy of referrers: under
no-referrer browsers send `Origin: null`, which Django's CSRF check refuses. What leads away from
here, or comes back, says no-referrer.
"""

import secrets
import uuid
from typing import Any

from django.conf import settings
from django.core.signing import BadSignature
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_GET, require_POST
from rest_framework.exceptions import Throttled

from connectors import registry
from ingestion import dispatching
from ingestion.addresses import client_address
from ingestion.errors import ChangedMeanwhile, InvalidInput, NotAllowedNow, ServiceError
from ingestion.models import ConsentLink
from ingestion.places import Places
from ingestion.services.operations import signing_in
from ingestion.services.sources import configuration, consent, consent_links
from ingestion.services.sources.consent_links import LinkState, NotOpen, Way
from ingestion.services.sources.options import Options

_COOKIE = "consent_link"
_COOKIE_SECONDS = 3_600
_DONE = "done"
_MAX_CHARS = 4_000
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
#: In five minutes. A link's token can't be guessed; a password at somebody's provider may be.
_OPENINGS_OF_ADDRESS = 60
_TRIES_OF_LINK = 10
#: Each try may wait 15 s for a server at each step.
_FULL_SECONDS = 15
_trials = Places(total=8, per_user=1, retry_seconds=_FULL_SECONDS)

#: Where people end it, by provider: what else they'd ask an operator for.
_ENDED_AT = {
    "google": "in your Google account, at myaccount.google.com/connections",
    "microsoft": "in your Microsoft account, at myapplications.microsoft.com or"
    " account.live.com/consent/Manage",
}


def _answer(request: HttpRequest, page: str, *, status: int = 200, **about: Any) -> HttpResponse:
    context = {"page": page, "host": request.get_host(), **about}
    answer = render(request, "consent_link.html", context, status=status)
    answer["Content-Security-Policy"] = _POLICY
    answer["X-Robots-Tag"] = "noindex"
    return _private(answer, leads_away=page == "going")


def _private(answer: HttpResponse, *, leads_away: bool = True) -> HttpResponse:
    answer["Referrer-Policy"] = "no-referrer" if leads_away else "same-origin"
    add_never_cache_headers(answer)
    return answer


def _to_page() -> HttpResponse:
    return _private(HttpResponseRedirect(reverse("connect")))


@require_GET
def page(request: HttpRequest) -> HttpResponse:
    """Show what this browser opened: its consent, its result, or why it is of no use."""
    held = _held(request)
    if held is None:
        return _answer(request, "paste")
    link, _, done = held
    return _consent(request, link) if not done else _answer(request, "done", **_about(link))


@require_POST
@sensitive_post_parameters("token")
def opened(request: HttpRequest) -> HttpResponse:
    """Take a link's token, once for this browser."""
    address = client_address(request) or ""
    if wait := signing_in.wait_seconds_for(f"link from {address}", limit=_OPENINGS_OF_ADDRESS):
        return _too_many(request, wait)
    token = request.POST.get("token", "").strip().rpartition("#")[2]
    link = consent_links.by_token(token)
    if link is None:
        return _answer(request, "paste", status=404, unknown=True)
    answer = _to_page()
    _hold(answer, link, secrets.token_urlsafe(32))
    return answer


@require_POST
def go(request: HttpRequest) -> HttpResponse:
    """Go on to the provider. Not by a redirect: browsers count that as the form's own target."""
    held = _held(request)
    if held is None:
        return _to_page()
    link, browser, _ = held
    try:
        address = consent_links.begin(
            link,
            browser=browser,
            seen=request.POST.get("seen", ""),
            redirect_uri=consent.callback_url(request),
        )
    except NotAllowedNow as refusal:
        return _refused(request, link, refusal)
    answer = _answer(request, "going", address=address, **_about(link))
    answer["Refresh"] = f"0; url={address}"
    return answer


@require_GET
def back(request: HttpRequest) -> HttpResponse:
    """Finish a sign-in that this browser began."""
    held = _held(request)
    if held is None:
        return _answer(request, "elsewhere", status=403)
    link, browser, _ = held
    state, code, refusal = (
        request.GET.get(name, "")[:_MAX_CHARS] for name in ("state", "code", "error")
    )
    try:
        source = consent_links.finish(
            link,
            browser=browser,
            state=state,
            code=code,
            refusal=refusal,
            address=client_address(request),
        )
    except (NotAllowedNow, InvalidInput) as problem:
        return _refused(request, link, problem)
    dispatching.on_commit(source)
    return _done(link, browser)


@sensitive_post_parameters("secret")
@sensitive_variables("secret")
@require_POST
def give(request: HttpRequest) -> HttpResponse:
    """Try the password that was typed, and store it where mail can be read with it."""
    held = _held(request)
    if held is None:
        return _to_page()
    link, browser, _ = held
    if wait := signing_in.wait_seconds_for(f"link {link.pk}", limit=_TRIES_OF_LINK):
        return _too_many(request, wait)
    secret = request.POST.get("secret", "")
    if not secret:
        return _consent(request, link, said="Type in the password.", status=400)
    try:
        with _trials.place(link.pk.int):
            steps = list(
                consent_links.give(
                    link,
                    secret,
                    seen=request.POST.get("seen", ""),
                    address=client_address(request),
                )
            )
    except Throttled:
        return _too_many(request, _FULL_SECONDS)
    except (NotAllowedNow, InvalidInput) as problem:
        return _refused(request, link, problem)
    if not steps[-1].ok:
        said = "It was not stored: your mail could not be read with it."
        return _consent(request, link, said=said, steps=steps, status=400)
    dispatching.on_commit(link.source)
    return _done(link, browser)


# -- inside ------------------------------------------------------------------------------------


def _consent(
    request: HttpRequest, link: ConsentLink, *, status: int = 200, **said: Any
) -> HttpResponse:
    found = consent_links.state(link)
    if found is not LinkState.OPEN:
        return _answer(request, "closed", status=410, state=found.value, **_about(link))
    return _answer(request, "consent", status=status, **_about(link), **said)


def _refused(request: HttpRequest, link: ConsentLink, problem: ServiceError) -> HttpResponse:
    """Show the page again, as things are now, with what was wrong."""
    if isinstance(problem, ChangedMeanwhile):
        said = "Something was changed meanwhile, so nothing was stored. This is how it is now."
    else:
        said = problem.words
    now = consent_links.by_id(link.pk)
    if now is None or isinstance(problem, NotOpen):
        return _consent(request, now, status=410) if now else _answer(request, "paste", status=404)
    return _consent(request, now, said=said, status=400)


def _too_many(request: HttpRequest, wait: int) -> HttpResponse:
    answer = _answer(request, "wait", status=429, minutes=-(-wait // 60))
    answer["Retry-After"] = str(wait)
    return answer


def _about(link: ConsentLink) -> dict[str, Any]:
    """Return what the page says of a link: who asks for what, and nothing more of the source."""
    source = link.source
    maker = link.made_by
    shown = configuration.public_config(source)
    account = str(shown.get("username") or shown.get("email") or "")
    way = consent_links.way(source)
    return {
        "link": link,
        "asks": (maker.get_full_name() or maker.username) if maker else "the operator",
        "provider": registry.get(source.provider).label,
        "account": account,
        "server": shown.get("host", "") if way is Way.SECRET else "",
        "is_plain": way is Way.SECRET and not (shown.get("secure") or shown.get("startTls")),
        "types": way is Way.SECRET,
        "seen": consent_links.as_shown(link),
        "leaves_out": _left_out(Options.of(source.options)),
        "since": Options.of(source.options).values["since"],
        "ended_at": _ENDED_AT.get(source.provider, "by deleting the app password at your provider"),
    }


def _left_out(options: Options) -> str:
    names = {"includeJunk": "spam", "includeTrash": "trash", "includeDrafts": "drafts"}
    out = [name for option, name in names.items() if not options.values[option]]
    return " and ".join([", ".join(out[:-1]), out[-1]] if len(out) > 1 else out)


def _done(link: ConsentLink, browser: str) -> HttpResponse:
    answer = _to_page()
    _hold(answer, link, f"{browser}:{_DONE}")
    return answer


def _hold(answer: HttpResponse, link: ConsentLink, value: str) -> None:
    answer.set_signed_cookie(
        _COOKIE,
        f"{link.pk}:{value}",
        max_age=_COOKIE_SECONDS,
        path=reverse("connect"),
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",  # it must come along when a provider sends the browser back
    )


def _held(request: HttpRequest) -> tuple[ConsentLink, str, bool] | None:
    """Return the link that this browser opened, its own secret, and whether it is done."""
    try:
        value = request.get_signed_cookie(_COOKIE, max_age=_COOKIE_SECONDS) or ""
    except (KeyError, BadSignature):
        return None
    pk, browser, *done = value.split(":")
    link = consent_links.by_id(uuid.UUID(pk))
    return (link, browser, bool(done)) if link else None
