"""Creates clusters/kuberay.schema.json: redirect the output of `python -m tests.clusters.reduce_crd FOLDER VERSION`.

FOLDER contains the operator's ray.io_rayclusters.yaml and ray.io_rayjobs.yaml (helm-chart/kuberay-operator/crds in its
repository). Their 2 MB are reduced to 40 kB: descriptions, defaults and status are removed, equal parts are shared.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
WORTH_SHARING = 160
"""Equal parts with more characters than this are written once."""


def reduced(schema: Any, names: bool = False) -> Any:
    """The schema with only names and types, and without additional properties.

    Args:
        names: whether the keys of `schema` are names of fields instead of keywords of JSON Schema.
    """
    if isinstance(schema, list):
        return [reduced(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if names:
        return {key: reduced(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    fields = schema.get("properties", {})
    kept = {
        key: reduced(value, key == "properties")
        for key, value in schema.items()
        if key not in ("description", "default") and not key.startswith("x-kubernetes")
    }
    if "required" in kept:  # the API server fills in defaults
        kept["required"] = [name for name in kept["required"] if "default" not in fields.get(name, {})]
    if fields and schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


def count(schema: Any, found: "Counter[str]", names: bool = False) -> None:
    """Count how often each part occurs in a schema."""
    if isinstance(schema, list):
        for part in schema:
            count(part, found)
    elif isinstance(schema, dict):
        text = json.dumps(schema, sort_keys=True)
        found[text] += not names and len(text) > WORTH_SHARING
        for key, value in schema.items():
            count(value, found, not names and key == "properties")


def shared(schema: Any, known: dict[str, str], names: bool = False, top: bool = False) -> Any:
    """The schema with its parts in `known` (text -> name) replaced by references."""
    if isinstance(schema, list):
        return [shared(part, known) for part in schema]
    if not isinstance(schema, dict):
        return schema
    text = json.dumps(schema, sort_keys=True)
    if not names and not top and text in known:
        return {"$ref": f"#/$defs/{known[text]}"}
    return {key: shared(value, known, not names and key == "properties") for key, value in schema.items()}


def main(folder: Path, version: str) -> None:
    """Write the schema to stdout, one part per line."""
    schemas = {}
    for kind, file in FILES.items():
        versions = yaml.load((folder / file).read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
        whole = next(each for each in versions if each["name"] == "v1")["schema"]["openAPIV3Schema"]
        whole["properties"]["metadata"] = {"type": "object"}  # checked by the API server, not by this schema
        del whole["properties"]["status"]
        schemas[kind] = reduced(whole)
    found: Counter[str] = Counter()
    count(schemas, found)
    known = {text: f"d{n}" for n, text in enumerate(text for text, times in found.items() if times > 1)}
    parts = {name: shared(json.loads(text), known, top=True) for text, name in known.items()}
    comment = (
        f"RayCluster and RayJob, ray.io/v1, of KubeRay {version} (helm-chart/kuberay-operator/crds; Apache License "
        "2.0, The KubeRay Authors), reduced by tests/clusters/reduce_crd.py: without descriptions, defaults and "
        "status, equal parts written once, and every field refused that is not named."
    )
    lines = [f'"$comment":{json.dumps(comment)}']
    lines.append('"$defs":{\n' + ",\n".join(f'"{name}":{_text(part)}' for name, part in parts.items()) + "\n}")
    lines += [f'"{kind}":{_text(shared(schema, known))}' for kind, schema in schemas.items()]
    print("{\n" + ",\n".join(lines) + "\n}")


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
