#!/bin/sh
# Sets up a mount, a policy and an AppRole for keswarden; to be run once, by somebody who may. Works with `bao` and `vault`.
# Usage: BAO_ADDR=… BAO_TOKEN=… deploy/vault/setup.sh DIRECTORY      writes role_id and secret_id there, mode 0600
set -eu
to=${1:?usage: setup.sh DIRECTORY}
cli=${CLI:-bao}
here=$(cd "$(dirname "$0")" && pwd)
umask 077
mkdir -p "$to"

"$cli" secrets enable -path=kv -version=2 kv
until "$cli" write kv/config cas_required=true max_versions=100; do sleep 1; done # the mount upgrades itself for a moment
"$cli" policy write keswarden "$here/keswarden-policy.hcl"
"$cli" auth enable approle
# One stale secret_id in one pod would otherwise lock the role out for all of them (OpenBao and Vault lock by role_id).
"$cli" auth tune -user-lockout-disable=true approle/
# A periodic token never reaches a maximum: it lives as long as it is renewed.
"$cli" write auth/approle/role/keswarden token_policies=keswarden token_no_default_policy=true \
  token_period=20m secret_id_ttl=0 secret_id_num_uses=0
"$cli" read -field=role_id auth/approle/role/keswarden/role-id > "$to/role_id"
"$cli" write -f -field=secret_id auth/approle/role/keswarden/secret-id > "$to/secret_id"
echo "role_id and secret_id are in $to"
