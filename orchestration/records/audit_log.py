"""Audits of data sets, stored next to the runs by the digest of the manifest and mirrored to MLflow."""

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel

from sepscene.orchestration.records.files import read_typed_or, write_text_atomically
from sepscene.orchestration.records.mlflow_mirror import Tracker
from sepscene.orchestration.records.run_folder import LEVELS_BELOW_STORAGE, Storage
from sepscene.tasks.datasets.audit import Audit
from sepscene.tasks.datasets.readers import Manifest


class AuditDigest(BaseModel):
    """The part of audit.json that a run reads: the digest of the findings."""

    digest: str | None = None


def save_audit(found: Audit, manifest: Manifest, format: str, root: str, storage: Path, tracking_uri: str) -> Path:
    """Write an audit into its folder (audit.json, audit.txt) and log it as an MLflow run; a later audit replaces it.

    Args:
        found: the findings.
        manifest: the audited manifest, all splits.
        format, root: how and from where it was read.
        storage: the folder of the runs that use the data.
        tracking_uri: the address of MLflow.
    """
    folder = Storage(storage.resolve()).audit(found.manifest_digest)
    write_text_atomically(folder.findings, json.dumps({"digest": found.digest, **asdict(found)}, indent=2) + "\n")
    write_text_atomically(folder.text, found.text() + "\n")
    tracker = Tracker(tracking_uri, "sepscene", folder.path)
    tags = {"stage": "audit", "data": f"{format} {root}", "data_hash": found.manifest_digest}
    tracker.start("", tags | {"audit_hash": found.digest, "mlflow.source.name": "sepscene"}, {"format": format})
    tracker.log_data(format, "audit", root, manifest)
    metrics = {
        "clips": found.clips,
        "readable": found.readable,
        "missing": len(found.missing),
        "corrupt": len(found.corrupt),
        "duplicates": len(found.duplicates),
        "leaking": found.leaking,
        "hours": found.durations.total / 3600 if found.durations else 0.0,
    }
    tracker.log_metrics("", {name: float(value) for name, value in metrics.items()})
    tracker.log_artifact("", folder.text)
    tracker.log_artifact("", folder.findings)
    tracker.finish("")
    return folder.path


def audit_hash(run_dir: Path, manifest: Manifest) -> str | None:
    """The digest of this manifest's audit in the run's storage; None if it was not audited."""
    for storage in map(Storage, run_dir.parents[:LEVELS_BELOW_STORAGE]):
        if storage.audits.is_dir():  # a manifest's digest takes long for millions of clips: only if needed
            findings = storage.audit(manifest.digest()).findings
            return read_typed_or(findings, AuditDigest, AuditDigest()).digest
    return None
