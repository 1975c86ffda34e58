{{- define "keswarden.name" -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- end }}

{{- define "keswarden.labels" -}}
app.kubernetes.io/name: minio
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "keswarden.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "keswarden.name" .) }}
{{- end }}

{{- define "keswarden.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The K/V path of the pins; empty: none. Two tenants with different prefixes never share the path. YAML reads a plain `off` as
false, and a release whose values are reused may have no such value at all. */}}
{{- define "keswarden.pins" -}}
{{- $pins := .Values.vault.pins | default "off" | toString -}}
{{- if eq $pins "auto" -}}
{{ list (trimAll "/" .Values.vault.kv.mount) "keswarden-pins" (trimAll "/" (.Values.vault.kv.prefix | default "")) | join "/" | trimSuffix "/" }}
{{- else if ne $pins "off" -}}
{{ $pins }}
{{- end }}
{{- end }}

{{- /* What remembers the keys, in words; empty: nothing does. */}}
{{- define "keswarden.memory" -}}
{{- $places := list -}}
{{- with include "keswarden.pins" . }}{{ $places = append $places (printf "by the pins at %s in Vault" .) }}{{ end -}}
{{- if .Values.agent.enabled }}{{ $places = append $places "in the run directory of each pod, as long as the pod lives" }}{{ end -}}
{{- if .Values.gate.drives }}{{ $places = append $places "by what MinIO has written to the data volumes" }}{{ end -}}
{{- join "; " $places -}}
{{- end }}

{{- /* What is true of every container that is ours. */}}
{{- define "keswarden.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- /* The settings of the gate and the agent alike. */}}
{{- define "keswarden.env" -}}
- { name: KESWARDEN_KEY_NAME, value: {{ .Values.keyName | quote }} }
- { name: KESWARDEN_VAULT_ADDR, value: {{ .Values.vault.address | quote }} }
- { name: KESWARDEN_VAULT_CACERT, value: "/etc/keswarden/vault-ca/{{ .Values.vault.ca.key }}" }
{{- with .Values.vault.namespace }}
- { name: KESWARDEN_VAULT_NAMESPACE, value: {{ . | quote }} }
{{- end }}
- { name: KESWARDEN_VAULT_KV_MOUNT, value: {{ .Values.vault.kv.mount | quote }} }
- { name: KESWARDEN_VAULT_KV_VERSION, value: {{ .Values.vault.kv.version | quote }} }
{{- with .Values.vault.kv.prefix }}
- { name: KESWARDEN_VAULT_KV_PREFIX, value: {{ . | quote }} }
{{- end }}
{{- if eq .Values.vault.auth "approle" }}
- { name: KESWARDEN_VAULT_APPROLE_MOUNT, value: {{ .Values.vault.approle.mount | quote }} }
- { name: KESWARDEN_VAULT_ROLE_ID_FILE, value: /etc/keswarden/login/role_id }
- { name: KESWARDEN_VAULT_SECRET_ID_FILE, value: /etc/keswarden/login/secret_id }
{{- else }}
- { name: KESWARDEN_VAULT_KUBERNETES_MOUNT, value: {{ .Values.vault.kubernetes.mount | quote }} }
- { name: KESWARDEN_VAULT_KUBERNETES_ROLE, value: {{ .Values.vault.kubernetes.role | quote }} }
- { name: KESWARDEN_VAULT_KUBERNETES_JWT_FILE, value: /etc/keswarden/login/token }
{{- end }}
{{- if .Values.agent.enabled }}
- { name: KESWARDEN_RUN_DIR, value: /run/keswarden }
{{- else }}
- { name: KESWARDEN_KES_ENDPOINT, value: {{ required "kes.endpoint: is needed when agent.enabled is false" .Values.kes.endpoint | quote }} }
- { name: KESWARDEN_KES_CERT_FILE, value: /etc/keswarden/kes/client.crt }
- { name: KESWARDEN_KES_KEY_FILE, value: /etc/keswarden/kes/client.key }
- { name: KESWARDEN_KES_CAPATH, value: /etc/keswarden/kes/ca.crt }
{{- end }}
{{- with include "keswarden.pins" . }}
- { name: KESWARDEN_PIN_KV, value: {{ . | quote }} }
{{- end }}
{{- if .Values.gate.drives }}
- { name: KESWARDEN_DRIVES, value: /data }
{{- end }}
{{- range $name, $value := .Values.env }}
- { name: {{ $name }}, value: {{ $value | quote }} }
{{- end }}
{{- end }}

{{- define "keswarden.mounts" -}}
- { name: vault-ca, mountPath: /etc/keswarden/vault-ca, readOnly: true }
- { name: login, mountPath: /etc/keswarden/login, readOnly: true }
{{- if .Values.agent.enabled }}
- { name: run, mountPath: /run/keswarden }
{{- else }}
- { name: kes, mountPath: /etc/keswarden/kes, readOnly: true }
{{- end }}
{{- if .Values.gate.drives }}
- { name: data, mountPath: /data, readOnly: true }
{{- end }}
{{- if .Values.events }}
- { name: kubernetes, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true }
{{- end }}
{{- end }}
