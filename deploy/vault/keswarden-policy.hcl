# What an agent may do in Vault or OpenBao: K/V v2 at kv/, keys below minio/. Nothing here can change or remove a key.
path "kv/data/minio/*"        { capabilities = ["create", "read"] } # create: `mc admin kms key create`; read alone is enough without it
path "kv/metadata/minio/*"    { capabilities = ["read", "list"] }   # to tell a key that never was from one that is gone
path "kv/metadata/minio"      { capabilities = ["list"] }

# Pins: the fingerprint of each key, written once and apart from the keys. On by default in the chart, the manifests and
# deploy/systemd, at kv/keswarden-pins/PREFIX; where several tenants share the mount, let each have its own PREFIX only. No update:
# whoever can overwrite a key cannot move the pin of the key.
path "kv/data/keswarden-pins/*"     { capabilities = ["create", "read"] }
path "kv/metadata/keswarden-pins/*" { capabilities = ["read"] }

# Only needed because the role has no default policy.
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "sys/capabilities-self"  { capabilities = ["update"] } # `keswarden doctor` tells of rights beyond need

# When the secret_id of the AppRole ends, as a metric and a warning ahead; the name of the role is in it.
path "auth/approle/role/keswarden/secret-id/lookup" { capabilities = ["update"] }

# K/V v1 in place of the lines for kv/:
#   path "kv/minio/*"          { capabilities = ["create", "read", "list"] }
#   path "kv/minio"            { capabilities = ["list"] }
#   path "kv/keswarden-pins/*" { capabilities = ["create", "read"] }
# Keys wrapped by transit (update only: create would silently make a missing transit key):
#   path "transit/encrypt/minio" { capabilities = ["update"] }
#   path "transit/decrypt/minio" { capabilities = ["update"] }
