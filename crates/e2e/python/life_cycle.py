"""A VM's life by the client that openapi-python-client makes of the server's document.

Run by `crates/e2e/tests/python.rs`, which sets STERNA_SERVER, STERNA_TOKEN and STERNA_CACERT and puts `sterna_client`
on the path.
"""

import os
import ssl
import time

from sterna_client import AuthenticatedClient
from sterna_client.api.vms import create_vm, delete_vm, get_vm, list_vms, patch_vm, poll_vms, shutdown_vms
from sterna_client.models import ActionBody, Labels, PatchVmBody, Problem, Vm, VmChanges, VmCreate, VmList, VmSpec

NAME = "python"
# How long a guest may take to boot on a busy machine without hardware virtualisation.
PATIENCE_S = 120


def connect() -> AuthenticatedClient:
    context = ssl.create_default_context(cafile=os.environ["STERNA_CACERT"])
    # Newer Pythons ask for extensions that a cloud's own CA does not need.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return AuthenticatedClient(
        base_url=os.environ["STERNA_SERVER"],
        token=os.environ["STERNA_TOKEN"],
        verify_ssl=context,
        httpx_args={"trust_env": False},
        timeout=90.0,
    )


def expect(kind, answer):
    """The answer, if it is of this kind; a refusal is raised with its words."""
    assert isinstance(answer, kind), answer
    return answer


def follow(client: AuthenticatedClient, revision: int, is_meant) -> None:
    """Polls from a revision on until a change is as meant."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = poll_vms.sync(client=client, from_=revision, timeout_s=20, filter_=f"name={NAME}")
        changes = expect(VmChanges, answer)
        if any(is_meant(change) for change in changes.items):
            return
        revision = changes.revision
        assert time.monotonic() < deadline, f"never as meant; the last is {get_vm.sync(NAME, client=client)}"


def names(client: AuthenticatedClient, **choice) -> list[str]:
    return [vm.name for vm in expect(VmList, list_vms.sync(client=client, **choice)).items]


def refused(answer, status: int, code: str) -> None:
    problem = expect(Problem, answer)
    assert (problem.status, problem.code) == (status, code), problem
    assert problem.detail and problem.remedy, problem


def main() -> None:
    with connect() as client:
        labels = Labels.from_dict({"app": "python"})
        body = VmCreate(name=NAME, labels=labels, spec=VmSpec(template="tiny"))
        made = expect(Vm, create_vm.sync(client=client, body=body, request_id="python-1"))
        again = expect(Vm, create_vm.sync(client=client, body=body, request_id="python-1"))
        assert made.id == again.id
        follow(client, made.revision, lambda change: change.object_.status.phase == "Running")

        assert names(client, filter_="status.phase=running,labels.app=python", sort="-created_at") == [NAME]
        assert names(client, filter_="status.phase=off") == []
        refused(list_vms.sync(client=client, filter_="status.phse=off"), 422, "unknown-field")
        refused(get_vm.sync("none", client=client), 404, "not-found")
        patch = PatchVmBody.from_dict({"labels": {"tier": "front"}})
        refused(patch_vm.sync(NAME, client=client, body=patch, expected_revision=1), 409, "stale-revision")
        patched = expect(Vm, patch_vm.sync(NAME, client=client, body=patch))
        assert patched.labels.to_dict() == {"app": "python", "tier": "front"}, patched.labels

        stopped = expect(Vm, shutdown_vms.sync(NAME, client=client, body=ActionBody(force=True)))
        follow(client, stopped.revision, lambda change: change.object_.status.phase == "Off")
        revision = expect(VmList, list_vms.sync(client=client, limit=1)).revision
        expect(Vm, delete_vm.sync(NAME, client=client))
        follow(client, revision, lambda change: change.type_ == "deleted")
        refused(get_vm.sync(NAME, client=client), 404, "not-found")


if __name__ == "__main__":
    main()
