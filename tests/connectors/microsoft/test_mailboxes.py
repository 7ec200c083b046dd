"""Which mailboxes of a tenant are read, and why others are not."""

from collections.abc import Callable

from ingestion.models import Folder, IngestionSource, Placement
from ingestion.services.sources import discovery, verbs
from tests.servers.graph import GraphServer, User
from tests.servers.graph import Mailbox as Box
from tests.servers.graph.sources import (
    ACTOR,
    body,
    box,
    fill,
    finish,
    imported,
    states,
    synced,
)
from tests.servers.graph.words import error

Make = Callable[..., IngestionSource]


def test_what_one_mailbox_lacks_is_its_own_state_and_may_change(
    server: GraphServer, make: Make
) -> None:
    add = server.tenant.add_user
    alice = add("alice")
    left = add("left", enabled=False)  # the mailbox of who left is archived as well
    shared = add("shared", enabled=False, plans=())
    forbidden = add("forbidden")
    guest = add("guest", kind="Guest", has_mailbox=False, plans=())
    guest.principal_name = "guest_fabrikam.example#EXT#@contoso.onmicrosoft.com"
    unlicensed = add("unlicensed", has_mailbox=False, plans=(), mail=None)
    on_premises = add("onpremises", has_mailbox=False, plans=())
    for number, user in enumerate((alice, left, shared, forbidden)):
        box(user).deliver(body(number))
    server.tenant.policy = set(server.tenant.users) - {forbidden.id}
    source = make()
    run = imported(source)
    source.refresh_from_db()
    assert source.status == "active"
    assert run.message.startswith("3 archived; ")
    found = states()
    for name in ("alice", "left", "shared"):
        assert found[name] == ("active", "")
    assert found["guest"][0] == found["unlicensed"][0] == found["onpremises"][0] == "unavailable"
    assert "policy" in found["forbidden"][1]
    assert "licence" in found["unlicensed"][1]
    # The next syncs pick up what became possible, and users that are new.
    server.tenant.policy = None
    on_premises.mailbox, unlicensed.mailbox, unlicensed.plans = Box(), Box(), ("exchange",)
    new = add("new")
    for number, user in enumerate((on_premises, unlicensed, new), 10):
        box(user).deliver(body(number))
    del server.tenant.users[left.id]
    assert synced(source).message == (
        "4 archived. 1 mailbox is no longer listed by the provider: left@contoso.example."
        " What was archived stays."
    )
    found = states()
    gone, _ = found.pop("left")
    assert gone == "gone"
    assert {state for name, (state, _) in found.items() if name != "guest"} == {"active"}


def test_a_mailbox_whose_folders_are_not_found_does_not_count_as_emptied(
    server: GraphServer, make: Make, alice: User
) -> None:
    """Exchange says "not found" of the root too, of a mailbox that is being moved or repaired."""
    fill(box(alice), 3)
    source = make()
    imported(source)
    before = list(Folder.objects.order_by("pk").values_list("remote_id", "cursor", "removed_at"))
    server.faults.intercept = lambda request, _user: (
        error(404, "ErrorItemNotFound", "Default folder Root not found.")
        if request.path.endswith("/mailFolders")
        else None
    )
    synced(source)
    assert states()["alice"][0] == "unavailable"
    assert not Placement.objects.exclude(removed_at=None).exists()
    after = list(Folder.objects.order_by("pk").values_list("remote_id", "cursor", "removed_at"))
    assert after == before


def test_shared_mailboxes_can_be_left_out(server: GraphServer, make: Make, alice: User) -> None:
    box(alice).deliver(body(1))
    box(server.tenant.add_user("room", enabled=False, plans=())).deliver(body(2))
    source = make(includeSharedMailboxes=False)
    assert imported(source).message == "1 archived."
    assert "includeSharedMailboxes" in states()["room"][1]


def test_a_permission_that_was_withdrawn_stops_the_source_and_is_named(
    server: GraphServer, make: Make, alice: User
) -> None:
    fill(box(alice), 3)
    source = make()
    imported(source)
    server.tenant.roles = {"User.Read.All"}
    server.login.expire_tokens()
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    finish(source)
    source.refresh_from_db()
    assert source.status == "error"
    assert "Mail.Read" in source.status_message


def test_permission_by_rbac_is_for_some_mailboxes_and_the_others_are_not_an_error(
    server: GraphServer, make: Make, alice: User
) -> None:
    bob = server.tenant.add_user("bob")
    box(bob).deliver(body(1))
    server.tenant.roles = {"User.Read.All"}  # RBAC for applications is not in the token
    server.tenant.rbac = {bob.id}
    source = make(checkMailbox=bob.principal_name)
    assert imported(source).message.startswith("1 archived; ")
    source.refresh_from_db()
    assert source.status == "active"
    assert {name: state for name, (state, _) in states().items()} == {
        "alice": "unavailable",
        "bob": "active",
    }
