"""Commands for clusters: a site's whole installation, and an app's bundle as a ConfigMap. Both print manifests."""

import base64
import importlib.metadata
import importlib.resources
import re
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
import yaml

from fedfleet_coordinator.cli import context
from fedfleet_coordinator.cli.client import Client
from fedfleet_coordinator.cli.errors import BadInput
from fedfleet_coordinator.cli.fleet_commands import seconds
from fedfleet_coordinator.cli.submission import Options, prepare

Json = dict[str, Any]
MAX_BUNDLE_BYTES = 1_000_000
"""What a ConfigMap can hold, beside the rest of it."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")
site = typer.Typer(help="Install agents on a cluster.", no_args_is_help=True)


@site.command("create")
def create_site(
    name: Annotated[str, typer.Argument(metavar="SITE", help="The site's name; agents carry it as label `site`.")],
    cluster: Annotated[str, typer.Option(help="The cluster's name, as label `cluster`; default: the site's.")] = "",
    max_nodes: Annotated[int, typer.Option(min=1, max=100_000, help="How many nodes may join.")] = 100,
    expires: Annotated[str, typer.Option(help="For how long nodes may join: 1h, 7d.")] = "7d",
    publisher: Annotated[
        list[str] | None, typer.Option(metavar="NAME=KEY", help="Whose apps may run there, with the public key.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A folder of each node that apps may read.")
    ] = None,
    registry: Annotated[str, typer.Option(help="Where the images are, like registry.example.org/.")] = "",
) -> None:
    """Print a site's whole installation, with a join token in it: a secret, so keep the file as one.

    For example:

      fedfleet site create plant-7 --publisher lab=3b6a27bc... --dataset digits=/srv/data > plant-7.yaml

      kubectl apply -f plant-7.yaml    # on the site's cluster
    """
    if not _NAME.fullmatch(name):
        raise BadInput(f"{name!r} is no name of a site; use lower-case letters, digits and dashes")
    labels = {"site": name, "cluster": cluster or name}
    publishers, datasets = _pairs(publisher, "--publisher"), _pairs(dataset, "--dataset")
    body = {"labels": labels, "uses": max_nodes, "expires_s": seconds(expires)}
    with Client(context.load()) as client:
        token = str(client.post("/v1/tokens", body)["token"])
    objects = site_objects(token, publishers, datasets, registry=registry, tag=_version())
    typer.echo(yaml.safe_dump_all(objects, sort_keys=False, width=140), nl=False)


def site_objects(
    token: str, publishers: dict[str, str], datasets: dict[str, str], *, registry: str, tag: str
) -> list[Json]:
    """Return the objects of a site.

    Args:
        datasets: folders of the nodes, by name; an app finds `/data/<name>` under this name in its node_config.
    """
    text = importlib.resources.files("fedfleet_coordinator.cli").joinpath("site.yaml").read_text(encoding="utf-8")
    objects: list[Json] = list(yaml.safe_load_all(text))
    of = {one["kind"]: one for one in objects}
    of["Secret"]["stringData"]["token"] = token
    settings: Json = {"trust": {"publishers": publishers}}
    if datasets:
        settings["agent"] = {"node_config": {name: f"/data/{name}" for name in datasets}}
    of["ConfigMap"]["data"]["agent.toml"] = tomli_w.dumps(settings)
    pod = of["DaemonSet"]["spec"]["template"]["spec"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        container["image"] = f"{registry}{container['image']}:{tag}"
    trainer = next(one for one in pod["containers"] if one["name"] == "trainer")
    for name, path in datasets.items():
        volume = f"data-{name}"
        pod["volumes"].append({"name": volume, "hostPath": {"path": path, "type": "Directory"}})
        trainer["volumeMounts"].append({"name": volume, "mountPath": f"/data/{name}", "readOnly": True})
    return objects


def bundle(
    app: Annotated[Path, typer.Argument(metavar="APP_DIR", help="The app's folder.")],
    name: Annotated[str, typer.Option(help="The ConfigMap's name; default: the app's.")] = "",
    namespace: Annotated[str, typer.Option(help="The ConfigMap's namespace.")] = "default",
) -> None:
    """Print an app as a signed bundle in a ConfigMap, for a FederatedRun's app.configMapRef.

    For example:

      fedfleet bundle examples/digits > digits.yaml && kubectl apply -f digits.yaml
    """
    prepared = prepare(app, Options(), context.load().publisher())
    if len(prepared.bundle) > MAX_BUNDLE_BYTES:
        raise BadInput(f"{app} makes a bundle of {len(prepared.bundle)} bytes; a ConfigMap holds {MAX_BUNDLE_BYTES}")
    name = name or str(prepared.request["app"]).rpartition("/")[2].replace("_", "-").lower()
    signature = f"{prepared.request['publisher']} {prepared.request['signature']}"
    found = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name, "namespace": namespace, "annotations": {"fedfleet.dev/digest": prepared.digest},
        },
        "binaryData": {"app.fab": base64.b64encode(prepared.bundle).decode()},
        "data": {"app.fab.signature": signature},
    }  # fmt: skip
    typer.echo(yaml.safe_dump(found, sort_keys=False, width=1 << 20), nl=False)


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    found = {}
    for pair in given or ():
        name, equals, value = pair.partition("=")
        if not equals or not _NAME.fullmatch(name) or not value:
            raise BadInput(
                f"{option} takes name=value with a name of lower-case letters, digits and dashes; not {pair!r}"
            )
        found[name] = value
    return found


def _version() -> str:
    return importlib.metadata.version("fedfleet-coordinator")
