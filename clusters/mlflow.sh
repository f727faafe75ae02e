#!/bin/bash
# One MLflow server for all runs of a cluster, on the head's loopback, with a password.
#
#   export MLFLOW_AUTH_ADMIN_PASSWORD=... MLFLOW_FLASK_SERVER_SECRET_KEY=...   # from your secret store, 16 characters
#   bash clusters/mlflow.sh                                                    # on the head; see docs/clusters.md
#   ssh -L 5000:127.0.0.1:5000 HEAD       (or kubectl port-forward)            # then http://127.0.0.1:5000
#
# Runs use it through MLFLOW_TRACKING_URI=http://127.0.0.1:5000 and log in with ~/.mlflow/credentials, written below.
# An open MLflow server lets anyone delete runs and read files through artifact locations: bind it to loopback only.
set -euo pipefail
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?set it from your secret store}"
: "${MLFLOW_FLASK_SERVER_SECRET_KEY:?set it from your secret store}"
STATE=${SEPSCENE_MLFLOW_STATE:-$HOME/mlflow} # the databases; use a disk that is kept when the head is deleted
ARTIFACTS=${SEPSCENE_MLFLOW_ARTIFACTS:-$STATE/artifacts} # or s3://YOUR-BUCKET/mlflow, gs://...
PORT=${SEPSCENE_MLFLOW_PORT:-5000}

umask 077 # only this user can read the files below
mkdir -p "$STATE" "$HOME/.mlflow"
printf '[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = %s\n' \
    "${MLFLOW_AUTH_ADMIN_PASSWORD//%/%%}" > "$HOME/.mlflow/credentials" # %% is an escaped %
# The server itself reads the password from the environment. Users that you add have no permissions at first.
printf '[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///%s/users.db\nadmin_username = admin\n' \
    "$STATE" > "$STATE/auth.ini"

export MLFLOW_AUTH_CONFIG_PATH="$STATE/auth.ini"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # 2 processes instead of 9
export MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
exec mlflow server --app-name basic-auth --host 127.0.0.1 --port "$PORT" --workers 2 \
    --allowed-hosts "127.0.0.1:$PORT,localhost:$PORT" --cors-allowed-origins "http://127.0.0.1:$PORT" \
    --backend-store-uri "sqlite:///$STATE/mlflow.db" --artifacts-destination "$ARTIFACTS" --serve-artifacts
