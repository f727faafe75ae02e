"""Our KubeRay manifests against the operator's own schema: `python -m tests.clusters.crd FOLDER`.

FOLDER holds the operator's ray.io_rayclusters.yaml and ray.io_rayjobs.yaml (helm-chart/kuberay-operator/crds of its
repository). They have two megabytes and are not ours, so they are not kept here; `clusters/kuberay.py` stands for them
in the tests. Here the schema's defaults are applied and unknown fields refused, which the API server does not do.
"""

import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

CLUSTERS = Path(__file__).resolve().parents[2] / "clusters"
MANIFESTS = {"ray.io_rayclusters.yaml": "raycluster.yaml", "ray.io_rayjobs.yaml": "rayjob.yaml"}


def strict(schema: Any) -> Any:
    """The schema with every field refused that it does not name, and Kubernetes' own types as JSON has them."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    known = {key: strict(value) for key, value in schema.items()}
    if known.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    listed = known.get("type") == "object" and "properties" in known
    if listed and not known.get("x-kubernetes-preserve-unknown-fields"):
        known.setdefault("additionalProperties", False)
    return known


def with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """The value with what the API server fills in."""
    if isinstance(value, list):
        return [with_defaults(schema.get("items") or {}, part) for part in value]
    if not isinstance(value, dict):
        return value
    fields = schema.get("properties") or {}
    filled = {key: field["default"] for key, field in fields.items() if "default" in field} | value
    return {key: with_defaults(fields.get(key) or {}, part) for key, part in filled.items()}


def faults(crd: Path, manifest: Path) -> list[str]:
    """What the schema refuses: the field and why."""
    versions = yaml.load(crd.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
    schema = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}  # checked by the API server, not by this schema
    tree = with_defaults(schema, yaml.safe_load(manifest.read_text()))
    found = jsonschema.Draft202012Validator(strict(schema)).iter_errors(tree)
    return [f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in found]


if __name__ == "__main__":
    refused = False
    for name, manifest in MANIFESTS.items():
        for fault in faults(Path(sys.argv[1]) / name, CLUSTERS / manifest):
            refused = True
            print(f"{manifest}: {fault}")
    print("refused" if refused else "both manifests are as the operator wants them")
    sys.exit(refused)
