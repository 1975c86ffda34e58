#!/bin/sh
# Sets up a mount, a policy and an AppRole for keswarden; run by somebody who may. Works with `bao` and `vault`, and again:
# what is there is left as it is, the policy and the role are brought up to date, and a further secret_id is made.
# Usage: BAO_ADDR=… BAO_TOKEN=… deploy/vault/setup.sh DIRECTORY      (VAULT_ADDR, VAULT_TOKEN with `vault`; CLI=… for another)
# Writes role_id and secret_id to DIRECTORY, mode 0600.
set -eu
to=${1:?usage: setup.sh DIRECTORY}
cli=${CLI:-$(command -v bao || command -v vault)} || { echo "neither bao nor vault is installed" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
umask 077
mkdir -p "$to"
to=$(cd "$to" && pwd) # the settings below hold wherever the agent starts

enabled() { # secrets|auth, path
  "$cli" "$1" list | grep -q "^$2/ "
}

# K/V v2: `-version=1` for v1, with the other lines of the policy.
if ! enabled secrets kv; then
  "$cli" secrets enable -path=kv -version=2 kv
  tries=10 # a new mount upgrades itself for a moment
  until "$cli" write kv/config cas_required=true max_versions=100; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || exit 1
    sleep 1
  done
fi
"$cli" policy write keswarden "$here/keswarden-policy.hcl"

if ! enabled auth approle; then
  "$cli" auth enable approle
  # One stale secret_id in one pod would otherwise lock the role out for all of them (OpenBao and Vault lock by role_id).
  "$cli" auth tune -user-lockout-disable=true approle/
fi
# A periodic token never reaches a maximum: it lives as long as it is renewed.
"$cli" write auth/approle/role/keswarden token_policies=keswarden token_no_default_policy=true \
  token_period=20m secret_id_ttl=0 secret_id_num_uses=0
"$cli" read -field=role_id auth/approle/role/keswarden/role-id >"$to/role_id"
"$cli" write -f -field=secret_id auth/approle/role/keswarden/secret-id >"$to/secret_id"
echo "role_id and secret_id are in $to. Lines for the agent's environment:"
cat <<END
KESWARDEN_VAULT_ROLE_ID_FILE=$to/role_id
KESWARDEN_VAULT_SECRET_ID_FILE=$to/secret_id
KESWARDEN_VAULT_KV_MOUNT=kv
KESWARDEN_VAULT_KV_PREFIX=minio
KESWARDEN_PIN_KV=kv/keswarden-pins/minio
END
